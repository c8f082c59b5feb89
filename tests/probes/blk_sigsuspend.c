/* sigsuspend and pause: they end by the signal they wait for, with the right mask in force meanwhile and after. */
#include "probe.h"

static blocked b[2];
static volatile sig_atomic_t got1, got2;
static void h1(int s) { (void)s, got1++; }
static void h2(int s) { (void)s, got2++; }
static long suspending(void) {
    sigset_t all, some, now;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, NULL);
    sigfillset(&some), sigdelset(&some, SIGUSR1);
    int r = sigsuspend(&some), e = errno;
    pthread_sigmask(SIG_SETMASK, NULL, &now);
    return r == -1 && e == EINTR && sigismember(&now, SIGUSR1) == 1 ? 1 : -1;
}
static long pausing(void) {
    int r = pause();
    return r == -1 && errno == EINTR ? 1 : -1;
}
static void setup(void) {
    signal(SIGUSR1, h1), signal(SIGUSR2, h2);
    block_in(&b[0], suspending), block_in(&b[1], pausing);
}
static void check(void) {
    for (int i = 0; i < 2; i++) want_blocked(&b[i]);
    EQ(got1 + got2, 0);
    pthread_kill(b[0].thread, SIGUSR2); /* blocked there: waits */
    want_blocked(&b[0]);
    EQ(got2, 0);
    pthread_kill(b[0].thread, SIGUSR1), want_return(&b[0], 1);
    pthread_kill(b[1].thread, SIGUSR2), want_return(&b[1], 1);
    EQ(got1, 1), EQ(got2, 1);
}
static void mutate(void) {
    pthread_kill(b[0].thread, SIGUSR1), pthread_kill(b[1].thread, SIGUSR2);
    WAIT_FOR(b[0].done && b[1].done, 1000);
}
