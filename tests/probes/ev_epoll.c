/* Level-triggered epoll: what is watched, for what, with which data. */
#include "probe.h"

static int ep, p[3][2];
static void add(int fd, uint32_t ev, uint64_t data) {
    struct epoll_event e = {.events = ev, .data.u64 = data};
    MUST(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e));
}
static void setup(void) {
    ep = MUST(epoll_create1(EPOLL_CLOEXEC));
    for (int i = 0; i < 3; i++) MUST(pipe(p[i]));
    add(p[0][0], EPOLLIN, 0xaaaabbbbccccddddULL), add(p[1][0], EPOLLIN, 111), add(p[2][1], EPOLLOUT, 222);
    EQ(write(p[0][1], "x", 1), 1);
}
static void check(void) {
    struct epoll_event e[8];
    int n = MUST(epoll_wait(ep, e, 8, 0));
    EQ(n, 2);
    uint64_t x = e[0].data.u64 ^ e[1].data.u64;
    CHECK(x == (0xaaaabbbbccccddddULL ^ 222), "the events carry %lx and %lx", (long)e[0].data.u64, (long)e[1].data.u64);
    EQ(write(p[1][1], "x", 1), 1);
    EQ(epoll_wait(ep, e, 8, 0), 3);
    struct epoll_event m = {.events = EPOLLIN};
    EQ(epoll_ctl(ep, EPOLL_CTL_ADD, p[0][0], &m), -1), EQ(errno, EEXIST);
}
static void mutate(void) {
    struct epoll_event e = {.events = EPOLLOUT, .data.u64 = 9};
    MUST(epoll_ctl(ep, EPOLL_CTL_DEL, p[0][0], NULL)), MUST(epoll_ctl(ep, EPOLL_CTL_MOD, p[2][1], &e));
    MUST(epoll_ctl(ep, EPOLL_CTL_ADD, p[1][1], &e));
}
