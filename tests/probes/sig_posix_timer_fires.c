/* A periodic POSIX timer keeps firing, and counts overruns while its signal is blocked. */
#include "probe.h"

static timer_t id;
static sigset_t set;
static void setup(void) {
    sigemptyset(&set), sigaddset(&set, SIGRTMIN + 8);
    ZERO(pthread_sigmask(SIG_BLOCK, &set, NULL));
    struct sigevent e = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 8};
    MUST(timer_create(CLOCK_MONOTONIC, &e, &id));
    struct itimerspec v = {{0, 10000000}, {0, 10000000}};
    MUST(timer_settime(id, 0, &v, NULL));
}
static void check(void) {
    struct timespec limit = {1, 0};
    siginfo_t i;
    CHECK(sigtimedwait(&set, &i, &limit) > 0, "no signal at all");
    sleep_ms(300);
    CHECK(sigtimedwait(&set, &i, &limit) > 0, "no second signal");
    CHECK(i.si_overrun >= 15 && i.si_overrun <= 45, "%d overruns in 300 ms at 10 ms each", i.si_overrun);
}
static void mutate(void) { TRY(timer_delete(id)); }
