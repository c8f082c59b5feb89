/* A read on an empty pipe goes on, without the program noticing. */
#include "probe.h"

static int p[2];
static char c;
static blocked b;
static long reading(void) { return read(p[0], &c, 1); }
static void setup(void) { MUST(pipe(p)), block_in(&b, reading); }
static void check(void) {
    want_blocked(&b);
    EQ(write(p[1], "z", 1), 1);
    want_return(&b, 1);
    EQ(c, 'z');
}
static void mutate(void) {
    EQ(write(p[1], "y", 1), 1);
    WAIT_FOR(b.done, 1000);
}
