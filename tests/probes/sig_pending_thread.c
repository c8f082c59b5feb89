/* Signals pending for one thread only. */
#include "probe.h"

static agent a, b;
static long work(int cmd) {
    sigset_t s, p;
    siginfo_t i;
    struct timespec zero = {0, 0};
    sigemptyset(&s), sigaddset(&s, SIGRTMIN + 5), sigaddset(&s, SIGUSR2);
    if (cmd == 'b') ZERO(pthread_sigmask(SIG_BLOCK, &s, NULL));
    if (cmd == 'p') {
        sigpending(&p);
        return sigismember(&p, SIGRTMIN + 5) * 2 + sigismember(&p, SIGUSR2);
    }
    if (cmd == 't') {
        if (syscall(SYS_rt_sigtimedwait, &s, &i, &zero, 8) < 0) return -1; /* libc hides SI_TKILL */
        return i.si_signo * 1000 + (i.si_code == SI_TKILL ? 1 : i.si_code == SI_QUEUE ? 500 + i.si_value.sival_int : 0);
    }
    return 0;
}
static void setup(void) {
    agent_thread(&a, work), agent_thread(&b, work);
    ask(&a, 'b'), ask(&b, 'b'), work('b');
    MUST(syscall(SYS_tgkill, getpid(), a.pid, SIGUSR2));
    ZERO(pthread_sigqueue(a.thread, SIGRTMIN + 5, (union sigval){.sival_int = 33}));
}
static void check(void) {
    EQ(ask(&a, 'p'), 3), EQ(ask(&b, 'p'), 0), EQ(work('p'), 0);
    EQ(ask(&a, 't'), SIGUSR2 * 1000 + 1);
    EQ(ask(&a, 't'), (SIGRTMIN + 5) * 1000 + 533);
    EQ(ask(&a, 't'), -1);
}
static void mutate(void) {
    ask(&a, 't');
    MUST(syscall(SYS_tgkill, getpid(), b.pid, SIGUSR2));
}
