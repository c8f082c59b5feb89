/* Signals at a high rate from a timer, while reads, waits and arithmetic go on. */
#include "run.h"

static volatile long ticks;
static int p[2];
static void tick(int s) { (void)s, ticks++; }
static void round_of(int i) {
    char b[8];
    if (i == 0) {
        long before = ticks;
        /* Some seconds; not by the clock, which a rollback does not turn back. */
        for (volatile long n = 0; ticks < before + 5 && n < 4000000000; n++) {
        }
        GOOD(ticks >= before + 5);
    } else {
        GOOD(write(p[1], "x", 1) == 1 && read(p[0], b, 1) == 1);
    }
}
static void setup(void) {
    probe_eintr_ok = 1;
    MUST(pipe(p));
    struct sigaction a = {.sa_handler = tick, .sa_flags = SA_RESTART};
    MUST(sigaction(SIGALRM, &a, NULL));
    struct itimerval v = {{0, 2000}, {0, 2000}};
    MUST(setitimer(ITIMER_REAL, &v, NULL));
    run_as_threads(2);
}
