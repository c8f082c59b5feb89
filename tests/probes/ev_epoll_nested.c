/* An epoll watched by another, over an eventfd, a timer, a signal descriptor, a socket and a pipe. */
#include "probe.h"
#include <sys/signalfd.h>
#include <sys/timerfd.h>

static int outer, inner, ev, tm, sg, sp[2];
static void add(int ep, int fd, int data) {
    struct epoll_event e = {.events = EPOLLIN, .data.u32 = data};
    MUST(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e));
}
static void setup(void) {
    sigset_t s;
    sigemptyset(&s), sigaddset(&s, SIGUSR1);
    ZERO(pthread_sigmask(SIG_BLOCK, &s, NULL));
    outer = MUST(epoll_create1(0)), inner = MUST(epoll_create1(0));
    ev = MUST(eventfd(0, 0)), tm = MUST(timerfd_create(CLOCK_MONOTONIC, 0)), sg = MUST(signalfd(-1, &s, 0));
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, sp));
    add(outer, inner, 1), add(inner, ev, 2), add(inner, tm, 3), add(inner, sg, 4), add(inner, sp[0], 5);
}
static int both(int want) {
    struct epoll_event e[8];
    if (epoll_wait(outer, e, 8, 200) != 1 || e[0].data.u32 != 1) return 0;
    if (epoll_wait(inner, e, 8, 200) != 1) return 0;
    return (int)e[0].data.u32 == want;
}
static void check(void) {
    struct epoll_event e[8];
    eventfd_t v;
    char b[200];
    EQ(epoll_wait(outer, e, 8, 0), 0), EQ(epoll_wait(inner, e, 8, 0), 0);
    EQ(eventfd_write(ev, 1), 0);
    CHECK(both(2), "the eventfd is not told of"), EQ(eventfd_read(ev, &v), 0);
    struct itimerspec t = {{0, 0}, {0, 1000000}};
    MUST(timerfd_settime(tm, 0, &t, NULL));
    CHECK(both(3), "the timer is not told of"), EQ(read(tm, b, 8), 8);
    raise(SIGUSR1);
    CHECK(both(4), "the signal is not told of"), CHECK(read(sg, b, 200) > 0, "no signal");
    EQ(write(sp[1], "x", 1), 1);
    CHECK(both(5), "the socket is not told of");
}
static void mutate(void) {
    MUST(epoll_ctl(inner, EPOLL_CTL_DEL, tm, NULL));
    EQ(eventfd_write(ev, 1), 0);
    close(sp[0]);
}
