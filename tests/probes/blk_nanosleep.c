/* A sleep goes on for what is left of it. */
#include "probe.h"

static blocked b[2];
static volatile int64_t started, ended[2];
static long relative(void) {
    struct timespec t = {2, 0}, rem = {0, 0};
    long r = nanosleep(&t, &rem);
    ended[0] = now_ms();
    return r;
}
static long absolute(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    t.tv_sec += 2;
    long r = clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
    ended[1] = now_ms();
    return r;
}
static int mutated;
static void setup(void) {
    started = now_ms();
    block_in(&b[0], relative), block_in(&b[1], absolute);
}
static void check(void) {
    CHECK(!mutated, "the state was changed");
    for (int i = 0; i < 2; i++) {
        CHECK(WAIT_FOR(b[i].done, 10000), "sleep %d does not end", i);
        CHECK(b[i].ret == 0, "sleep %d returned %ld: %s", i, b[i].ret, strerror(b[i].ret > 0 ? (int)b[i].ret : b[i].err));
        CHECK(ended[i] - started >= 1990, "sleep %d ended after %d ms", i, (int)(ended[i] - started));
    }
}
static void mutate(void) {
    mutated = 1;
    pthread_join(b[0].thread, NULL);
}
