/* sigtimedwait with a long limit, and sigwaitinfo. */
#include "probe.h"

static blocked b[2];
static sigset_t one, two;
static long w1(void) {
    struct timespec t = {3600, 0};
    siginfo_t i;
    return sigtimedwait(&one, &i, &t) == SIGRTMIN + 1 ? i.si_value.sival_int : -errno;
}
static long w2(void) {
    siginfo_t i;
    return sigwaitinfo(&two, &i) == SIGRTMIN + 2 ? i.si_value.sival_int : -errno;
}
static void setup(void) {
    sigset_t both;
    sigemptyset(&one), sigaddset(&one, SIGRTMIN + 1), sigemptyset(&two), sigaddset(&two, SIGRTMIN + 2);
    sigorset(&both, &one, &two);
    ZERO(pthread_sigmask(SIG_BLOCK, &both, NULL));
    block_in(&b[0], w1), block_in(&b[1], w2);
}
static void send_both(void) {
    MUST(sigqueue(getpid(), SIGRTMIN + 1, (union sigval){.sival_int = 71})), MUST(sigqueue(getpid(), SIGRTMIN + 2, (union sigval){.sival_int = 72}));
}
static void check(void) {
    for (int i = 0; i < 2; i++) want_blocked(&b[i]);
    send_both();
    want_return(&b[0], 71), want_return(&b[1], 72);
}
static void mutate(void) {
    send_both();
    WAIT_FOR(b[0].done && b[1].done, 1000);
}
