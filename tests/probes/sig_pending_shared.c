/* Signals pending for a process, with everything that was sent along. */
#include "probe.h"

static sigset_t set;
static void setup(void) {
    sigemptyset(&set);
    for (int s = SIGRTMIN; s <= SIGRTMAX; s++) sigaddset(&set, s);
    sigaddset(&set, SIGUSR1), sigaddset(&set, SIGTERM), sigaddset(&set, SIGSTOP);
    ZERO(pthread_sigmask(SIG_BLOCK, &set, NULL));
    MUST(sigqueue(getpid(), SIGUSR1, (union sigval){.sival_ptr = (void *)0x1122334455667788}));
    MUST(kill(getpid(), SIGTERM));
    MUST(sigqueue(getpid(), SIGRTMIN + 3, (union sigval){.sival_int = 42}));
}
static void take(int s, int code, long value) {
    sigset_t one;
    siginfo_t i;
    struct timespec zero = {0, 0};
    sigemptyset(&one), sigaddset(&one, s);
    CHECK(sigtimedwait(&one, &i, &zero) == s, "signal %d is not pending", s);
    EQ(i.si_code, code), EQ(i.si_pid, getpid()), EQ(i.si_uid, getuid());
    if (code == SI_QUEUE) EQ((long)i.si_value.sival_ptr, value);
}
static void check(void) {
    sigset_t p;
    sigpending(&p);
    EQ(sigismember(&p, SIGUSR1) + sigismember(&p, SIGTERM) + sigismember(&p, SIGRTMIN + 3), 3);
    EQ(sigismember(&p, SIGRTMIN + 4), 0);
    take(SIGUSR1, SI_QUEUE, 0x1122334455667788);
    take(SIGTERM, SI_USER, 0);
    take(SIGRTMIN + 3, SI_QUEUE, 42);
}
static void mutate(void) {
    struct timespec zero = {0, 0};
    TRY(sigtimedwait(&set, NULL, &zero));
    MUST(sigqueue(getpid(), SIGRTMIN + 4, (union sigval){.sival_int = 1}));
}
