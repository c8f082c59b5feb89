/* A pty whose other side is closed, with output left in it. */
#include "probe.h"
#include <pty.h>

static int m;
static void setup(void) {
    int s;
    MUST(openpty(&m, &s, NULL, NULL, NULL));
    EQ(write(s, "goodbye", 7), 7);
    sleep_ms(10);
    close(s);
}
static void check(void) {
    want_data(m, "goodbye", 7);
    char c;
    EQ(read(m, &c, 1), -1), EQ(errno, EIO);
}
static void mutate(void) {
    char b[16];
    TRY(read(m, b, 3));
}
