/* Edge-triggered and one-shot epoll: an edge already reported is not reported again, one not yet reported is. */
#include "probe.h"

static int ep, seen[2], unseen[2], once[2], armed[2];
static void add(int fd, uint32_t ev, int data) {
    struct epoll_event e = {.events = ev, .data.u32 = data};
    MUST(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e));
}
static void setup(void) {
    struct epoll_event e[4];
    ep = MUST(epoll_create1(0));
    MUST(pipe(seen)), MUST(pipe(unseen)), MUST(pipe(once)), MUST(pipe(armed));
    add(seen[0], EPOLLIN | EPOLLET, 1), add(once[0], EPOLLIN | EPOLLONESHOT, 3), add(armed[0], EPOLLIN | EPOLLONESHOT, 4);
    EQ(write(seen[1], "x", 1), 1), EQ(write(once[1], "x", 1), 1);
    EQ(epoll_wait(ep, e, 4, 0), 2); /* these two are reported now */
    add(unseen[0], EPOLLIN | EPOLLET, 2);
    EQ(write(unseen[1], "x", 1), 1);
}
static void check(void) {
    struct epoll_event e[4];
    EQ(epoll_wait(ep, e, 4, 0), 1), EQ(e[0].data.u32, 2);
    EQ(epoll_wait(ep, e, 4, 0), 0);
    EQ(write(seen[1], "y", 1), 1), EQ(write(once[1], "y", 1), 1), EQ(write(armed[1], "y", 1), 1);
    EQ(epoll_wait(ep, e, 4, 0), 2), EQ(e[0].data.u32 + e[1].data.u32, 5);
    EQ(epoll_wait(ep, e, 4, 0), 0);
}
static void mutate(void) {
    struct epoll_event e[4], m = {.events = EPOLLIN | EPOLLONESHOT, .data.u32 = 33};
    TRY(epoll_wait(ep, e, 4, 0));
    MUST(epoll_ctl(ep, EPOLL_CTL_MOD, once[0], &m));
}
