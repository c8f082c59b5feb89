/* 50 real-time signals queued: none lost, none doubled, in order, with their values. */
#include "probe.h"

static sigset_t set;
static void setup(void) {
    sigemptyset(&set), sigaddset(&set, SIGRTMIN + 1), sigaddset(&set, SIGRTMIN + 2);
    ZERO(pthread_sigmask(SIG_BLOCK, &set, NULL));
    for (int i = 0; i < 50; i++) MUST(sigqueue(getpid(), SIGRTMIN + 1 + i % 2, (union sigval){.sival_int = i}));
}
static void check(void) {
    struct timespec zero = {0, 0};
    siginfo_t s;
    for (int i = 0; i < 50; i++) { /* the lower number first, each in the order of sending */
        int nr = SIGRTMIN + 1 + i / 25, want = (i % 25) * 2 + i / 25;
        CHECK(sigtimedwait(&set, &s, &zero) == nr, "signal %d of the queue is %d, not %d", i, s.si_signo, nr);
        CHECK(s.si_value.sival_int == want, "signal %d carries %d, not %d", i, s.si_value.sival_int, want);
    }
    EQ(sigtimedwait(&set, &s, &zero), -1);
}
static void mutate(void) {
    struct timespec zero = {0, 0};
    for (int i = 0; i < 7; i++) TRY(sigtimedwait(&set, NULL, &zero));
    MUST(sigqueue(getpid(), SIGRTMIN + 2, (union sigval){.sival_int = 99}));
}
