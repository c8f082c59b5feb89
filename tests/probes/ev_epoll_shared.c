/* One epoll shared by two processes that both wait on it. */
#include "probe.h"

static int ep, p[2];
static agent a;
static blocked b;
static long wait_here(void) {
    struct epoll_event e;
    int r = epoll_wait(ep, &e, 1, -1);
    return r == 1 ? (long)e.data.u32 : -1;
}
static long work(int cmd) {
    if (cmd == 'w') return wait_here();
    if (cmd == 'a') {
        struct epoll_event e = {.events = EPOLLOUT | EPOLLONESHOT, .data.u32 = 9};
        MUST(epoll_ctl(ep, EPOLL_CTL_ADD, p[1], &e));
    }
    return 0;
}
static void setup(void) {
    struct epoll_event e = {.events = EPOLLIN | EPOLLEXCLUSIVE, .data.u32 = 7};
    ep = MUST(epoll_create1(0));
    MUST(pipe(p)), MUST(epoll_ctl(ep, EPOLL_CTL_ADD, p[0], &e));
    a = agent_fork(work);
    block_in(&b, wait_here);
}
static void check(void) {
    want_blocked(&b);
    ask(&a, 'a'); /* added there, told here */
    want_return(&b, 9);
    tell(&a, 'w');
    sleep_ms(10);
    EQ(write(p[1], "x", 1), 1);
    EQ(answer(&a), 7);
}
static void mutate(void) {
    kill(a.pid, SIGKILL);
    TRY(waitpid(a.pid, NULL, 0));
    EQ(write(p[1], "x", 1), 1);
    WAIT_FOR(b.done, 1000);
}
