/* The three interval timers: what is left of them and their period. */
#include "probe.h"

static const int which[3] = {ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF};
static int64_t started;
static void setup(void) {
    for (int i = 0; i < 3; i++) {
        struct itimerval v = {{300 + i, 500}, {4000 + i, 0}};
        MUST(setitimer(which[i], &v, NULL));
    }
    started = now_ms();
}
static void check(void) {
    double gone = (now_ms() - started) / 1e3;
    for (int i = 0; i < 3; i++) {
        struct itimerval v;
        MUST(getitimer(which[i], &v));
        double left = v.it_value.tv_sec + v.it_value.tv_usec / 1e6;
        CHECK(left <= 4000 + i + 0.01 && left >= 4000 + i - gone - 0.1, "timer %d has %f s left after %f s", i, left, gone);
        EQ(v.it_interval.tv_sec, 300 + i), EQ(v.it_interval.tv_usec, 500);
    }
}
static void mutate(void) {
    struct itimerval off = {{0, 0}, {0, 0}}, other = {{9, 0}, {9999, 0}};
    MUST(setitimer(ITIMER_REAL, &off, NULL));
    MUST(setitimer(ITIMER_VIRTUAL, &other, NULL));
    MUST(setitimer(ITIMER_PROF, &off, NULL));
}
