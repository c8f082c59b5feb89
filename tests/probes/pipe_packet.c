/* A pipe in packet mode: the boundaries between writes. */
#include "probe.h"

static int p[2];
static void setup(void) {
    MUST(pipe2(p, O_DIRECT));
    EQ(write(p[1], "one", 3), 3), EQ(write(p[1], "two two", 7), 7), EQ(write(p[1], "3", 1), 1);
}
static void check(void) {
    char b[64];
    EQ(fcntl(p[1], F_GETFL) & O_DIRECT, O_DIRECT);
    EQ(read(p[0], b, 64), 3), EQ(read(p[0], b, 64), 7);
    CHECK(!memcmp(b, "two two", 7), "the second is %.7s", b);
    EQ(read(p[0], b, 64), 1);
    EQ(write(p[1], "ab", 2), 2), EQ(write(p[1], "c", 1), 1), EQ(read(p[0], b, 64), 2);
}
static void mutate(void) {
    char b[64];
    TRY(read(p[0], b, 64));
    EQ(write(p[1], "four", 4), 4);
}
