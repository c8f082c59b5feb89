/* CPU clocks do not go backwards for the process itself, while it lives. */
#include "probe.h"

static void setup(void) {
    while (now_ns(CLOCK_PROCESS_CPUTIME_ID) < 20000000) {
    }
}
static void check(void) {
    int64_t a = now_ns(CLOCK_PROCESS_CPUTIME_ID);
    for (volatile int i = 0; i < 1000000; i++) {
    }
    CHECK(now_ns(CLOCK_PROCESS_CPUTIME_ID) > a, "the CPU clock stands still");
}
static void mutate(void) { noop("a program cannot set its CPU clock"); }
