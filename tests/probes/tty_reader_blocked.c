/* A reader blocked on a pty gets the line that comes later. */
#include "probe.h"
#include <pty.h>

static int m, s;
static char line[64];
static blocked b;
static long reading(void) { return read(s, line, sizeof line); }
static void setup(void) {
    MUST(openpty(&m, &s, NULL, NULL, NULL));
    block_in(&b, reading);
}
static void check(void) {
    want_blocked(&b);
    EQ(write(m, "now\n", 4), 4);
    want_return(&b, 4);
    CHECK(!memcmp(line, "now\n", 4), "the line is '%.4s'", line);
    want_data(m, "now\r\n", 5); /* the echo */
}
static void mutate(void) {
    EQ(write(m, "x\n", 2), 2);
    WAIT_FOR(b.done, 1000);
}
