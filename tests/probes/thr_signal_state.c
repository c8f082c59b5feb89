/* Signal mask, alternate stack and pending signal of each thread. */
#include "probe.h"

static agent a[4];
static _Thread_local stack_t want_stack;
static _Thread_local sigset_t want_mask;

static long work(int cmd) {
    int nr = SIGRTMIN + 1 + syscall(SYS_gettid) % 20;
    switch (cmd) {
    case 's':
        sigemptyset(&want_mask), sigaddset(&want_mask, nr), sigaddset(&want_mask, SIGUSR2);
        ZERO(pthread_sigmask(SIG_SETMASK, &want_mask, NULL));
        want_stack = (stack_t){.ss_sp = map_anon(65536), .ss_size = 65536};
        MUST(sigaltstack(&want_stack, NULL));
        MUST(syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), nr));
        break;
    case 'c': {
        sigset_t m, p;
        stack_t st;
        pthread_sigmask(SIG_SETMASK, NULL, &m);
        for (int i = 1; i < 64; i++) CHECK(sigismember(&m, i) == sigismember(&want_mask, i), "signal %d of the mask", i);
        MUST(sigaltstack(NULL, &st));
        CHECK(st.ss_sp == want_stack.ss_sp && st.ss_size == 65536 && !st.ss_flags, "the alternate stack is at %p", st.ss_sp);
        sigpending(&p);
        CHECK(sigismember(&p, nr) == 1, "signal %d is not pending any more", nr);
        break;
    }
    case 'm': {
        sigset_t m;
        siginfo_t info;
        struct timespec zero = {0, 0};
        sigfillset(&m);
        TRY(sigtimedwait(&m, &info, &zero));
        ZERO(pthread_sigmask(SIG_SETMASK, &m, NULL));
        stack_t off = {.ss_flags = SS_DISABLE};
        MUST(sigaltstack(&off, NULL));
        break;
    }
    }
    return 0;
}
static void setup(void) {
    for (int i = 0; i < 4; i++) agent_thread(&a[i], work), ask(&a[i], 's');
}
static void check(void) {
    for (int i = 0; i < 4; i++) ask(&a[i], 'c');
}
static void mutate(void) {
    for (int i = 0; i < 4; i++) ask(&a[i], 'm');
}
