/* A thread in select over many descriptors. */
#include "probe.h"

static int p[60][2];
static blocked b;
static long selecting(void) {
    fd_set s;
    FD_ZERO(&s);
    int max = 0;
    for (int i = 0; i < 60; i++) {
        FD_SET(p[i][0], &s);
        if (p[i][0] > max) max = p[i][0];
    }
    struct timeval t = {3600, 0};
    int r = select(max + 1, &s, NULL, NULL, &t);
    if (r != 1) return -r - 100;
    for (int i = 0; i < 60; i++)
        if (FD_ISSET(p[i][0], &s)) return i;
    return -1;
}
static void setup(void) {
    for (int i = 0; i < 60; i++) MUST(pipe(p[i]));
    block_in(&b, selecting);
}
static void check(void) {
    want_blocked(&b);
    EQ(write(p[41][1], "x", 1), 1);
    want_return(&b, 41);
}
static void mutate(void) {
    EQ(write(p[5][1], "x", 1), 1);
    WAIT_FOR(b.done, 1000);
}
