/* A periodic interval timer goes on firing, at its period: not at once, not never. */
#include "probe.h"

static volatile sig_atomic_t ticks;
static void tick(int s) { (void)s, ticks++; }
static void setup(void) {
    probe_eintr_ok = 1;
    struct sigaction a = {.sa_handler = tick, .sa_flags = SA_RESTART};
    MUST(sigaction(SIGALRM, &a, NULL));
    struct itimerval v = {{0, 20000}, {0, 20000}};
    MUST(setitimer(ITIMER_REAL, &v, NULL));
}
static void check(void) {
    int before = ticks;
    sleep_ms(500);
    int n = ticks - before;
    CHECK(n >= 10 && n <= 27, "%d ticks in 500 ms at 20 ms each", n);
}
static void mutate(void) {
    struct itimerval off = {{0, 0}, {0, 0}};
    MUST(setitimer(ITIMER_REAL, &off, NULL));
}
