/* No clock goes backwards. The monotonic clock goes on while a program is stopped or rolled back: time is
 * outside of the state, as it is for a suspended process, so what was left of a timer is what is promised, not
 * the moment it ends. Values from before a rollback are seen by asking the clock through shared, rewound memory. */
#include "probe.h"

static const clockid_t clocks[] = {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_MONOTONIC_RAW, CLOCK_MONOTONIC_COARSE};
static volatile int64_t worst;
static volatile int64_t laps;
static pthread_t thread;
static volatile int stop;

static void *run(void *unused) {
    (void)unused;
    int64_t last[5] = {0};
    while (!stop) {
        for (int i = 0; i < 5; i++) {
            int64_t t = now_ns(clocks[i]);
            if (i && t < last[i] && t - last[i] < worst) worst = t - last[i];
            last[i] = t;
        }
        laps++;
        sleep_ms(1);
    }
    return NULL;
}
static void setup(void) {
    ZERO(pthread_create(&thread, NULL, run, NULL));
    CHECK(WAIT_FOR(laps > 2, 1000), "the thread does not run");
}
static void check(void) {
    int64_t before = laps;
    CHECK(WAIT_FOR(laps > before + 2, 2000), "the thread does not go on");
    CHECK(worst == 0, "a clock went back by %lld ns", (long long)-worst);
}
static void mutate(void) {
    stop = 1;
    pthread_join(thread, NULL);
}
