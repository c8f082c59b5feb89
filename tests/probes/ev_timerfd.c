/* Timer descriptors of several clocks: what is left, the period, expirations not yet read. */
#include "probe.h"
#include <sys/timerfd.h>

static int one, cyc, abst, idle;
static int64_t started;
static double left(int fd, double *period) {
    struct itimerspec v;
    MUST(timerfd_gettime(fd, &v));
    *period = v.it_interval.tv_sec + v.it_interval.tv_nsec / 1e9;
    return v.it_value.tv_sec + v.it_value.tv_nsec / 1e9;
}
static void setup(void) {
    one = MUST(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK)), cyc = MUST(timerfd_create(CLOCK_MONOTONIC, 0));
    abst = MUST(timerfd_create(CLOCK_REALTIME, 0)), idle = MUST(timerfd_create(CLOCK_BOOTTIME, TFD_NONBLOCK));
    struct itimerspec o = {{0, 0}, {4000, 5}}, c = {{500, 0}, {0, 1000000}}, ab = {{7, 0}, {time(NULL) + 3000, 0}};
    MUST(timerfd_settime(one, 0, &o, NULL)), MUST(timerfd_settime(cyc, 0, &c, NULL)), MUST(timerfd_settime(abst, TFD_TIMER_ABSTIME, &ab, NULL));
    started = now_ms();
    CHECK(readable(cyc, 1000), "the periodic one does not fire");
}
static void check(void) {
    uint64_t n;
    double gone = (now_ms() - started) / 1e3, period, l = left(one, &period);
    CHECK(l <= 4000.01 && l >= 4000 - gone - 0.1 && period == 0, "the single one has %f s left, every %f", l, period);
    l = left(cyc, &period);
    CHECK(period == 500 && l <= 500.01 && l >= 500 - gone - 0.1, "the periodic one has %f s left, every %f", l, period);
    l = left(abst, &period);
    CHECK(period == 7 && l <= 3000 && l >= 2990 - gone, "the absolute one has %f s left, every %f", l, period);
    l = left(idle, &period);
    CHECK(l == 0, "the idle one has %f s left", l);
    CHECK(readable(cyc, 0), "the expiration is lost");
    EQ(read(cyc, &n, 8), 8), EQ(n, 1);
    EQ(read(one, &n, 8), -1), EQ(errno, EAGAIN);
    struct itimerspec soon = {{0, 0}, {0, 1000000}};
    MUST(timerfd_settime(idle, 0, &soon, NULL));
    CHECK(readable(idle, 1000), "the idle one does not fire when set");
}
static void mutate(void) {
    uint64_t n;
    struct itimerspec off = {{0, 0}, {0, 0}}, x = {{1, 0}, {77, 0}};
    TRY(readable(cyc, 0) ? read(cyc, &n, 8) : 0);
    MUST(timerfd_settime(one, 0, &off, NULL)), MUST(timerfd_settime(abst, 0, &x, NULL)), MUST(timerfd_settime(idle, 0, &x, NULL));
}
