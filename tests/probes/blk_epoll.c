/* epoll_wait and epoll_pwait2, blocked. */
#include "probe.h"

static int ep, p[2];
static blocked b;
static long waiting(void) {
    struct epoll_event e;
    int r = epoll_wait(ep, &e, 1, -1);
    return r == 1 ? (long)e.data.u32 : -1;
}
static void setup(void) {
    struct epoll_event e = {.events = EPOLLIN, .data.u32 = 55};
    ep = MUST(epoll_create1(0));
    MUST(pipe(p)), MUST(epoll_ctl(ep, EPOLL_CTL_ADD, p[0], &e));
    block_in(&b, waiting);
}
static void check(void) {
    want_blocked(&b);
    EQ(write(p[1], "x", 1), 1);
    want_return(&b, 55);
}
static void mutate(void) {
    EQ(write(p[1], "x", 1), 1);
    WAIT_FOR(b.done, 1000);
}
