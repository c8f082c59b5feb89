/* A descriptor that was closed after it was given to epoll, while another of the same file lives on. */
#include "probe.h"

static int ep, p[2], second;
static void setup(void) {
    ep = MUST(epoll_create1(0));
    MUST(pipe(p));
    struct epoll_event e = {.events = EPOLLIN, .data.u32 = 6};
    MUST(epoll_ctl(ep, EPOLL_CTL_ADD, p[0], &e));
    second = MUST(dup(p[0]));
    int old = p[0];
    close(p[0]);
    EQ(open("/dev/null", O_RDONLY), old); /* the number is something else now */
}
static void check(void) {
    struct epoll_event e[2];
    EQ(epoll_wait(ep, e, 2, 0), 0);
    EQ(write(p[1], "x", 1), 1);
    EQ(epoll_wait(ep, e, 2, 100), 1), EQ(e[0].data.u32, 6);
    want_data(second, "x", 1);
}
static void mutate(void) { close(second); }
