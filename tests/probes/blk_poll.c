/* poll with a long time limit, ppoll without any. */
#include "probe.h"

static int p[2][2];
static blocked b[2];
static long polling(void) {
    struct pollfd f = {p[0][0], POLLIN, 0};
    int r = poll(&f, 1, 1000000);
    return r == 1 && f.revents == POLLIN ? 1 : -r - 10;
}
static long ppolling(void) {
    struct pollfd f = {p[1][0], POLLIN, 0};
    sigset_t s;
    sigfillset(&s);
    return ppoll(&f, 1, NULL, &s);
}
static void setup(void) {
    MUST(pipe(p[0])), MUST(pipe(p[1]));
    block_in(&b[0], polling), block_in(&b[1], ppolling);
}
static void check(void) {
    for (int i = 0; i < 2; i++) want_blocked(&b[i]);
    for (int i = 0; i < 2; i++) EQ(write(p[i][1], "x", 1), 1), want_return(&b[i], 1);
}
static void mutate(void) {
    for (int i = 0; i < 2; i++) EQ(write(p[i][1], "x", 1), 1), WAIT_FOR(b[i].done, 1000);
}
