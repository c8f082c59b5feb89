/* A periodic timer descriptor goes on firing at its period, read by a thread. */
#include "probe.h"
#include <sys/timerfd.h>

static int fd;
static volatile uint64_t total;
static pthread_t t;
static void *run(void *unused) {
    uint64_t n;
    while (!unused && read(fd, &n, 8) == 8) total += n;
    return NULL;
}
static void setup(void) {
    fd = MUST(timerfd_create(CLOCK_MONOTONIC, 0));
    struct itimerspec v = {{0, 10000000}, {0, 10000000}};
    MUST(timerfd_settime(fd, 0, &v, NULL));
    ZERO(pthread_create(&t, NULL, run, NULL));
}
static void check(void) {
    uint64_t before = total;
    sleep_ms(300);
    uint64_t n = total - before;
    CHECK(n >= 20 && n <= 45, "%d ticks in 300 ms at 10 ms each", (int)n);
}
static void mutate(void) {
    struct itimerspec off = {{0, 0}, {0, 0}};
    MUST(timerfd_settime(fd, 0, &off, NULL));
}
