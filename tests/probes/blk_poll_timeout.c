/* poll, select, epoll_wait and futex waits with a short limit end by it: not early, not much late, not with EINTR. */
#include "probe.h"

static volatile int rounds, bad;
static char why[128];
static int ep, p[2];
static pthread_t t;
static volatile int stop;
static void judge(const char *what, long r, int64_t start, int want_ms) {
    double ms = (now_ns(CLOCK_MONOTONIC) - start) / 1e6;
    if (r != 0 || ms < want_ms - 0.5) {
        snprintf(why, sizeof why, "%s returned %ld (%s) after %.1f of %d ms", what, r, r ? strerror(errno) : "-", ms, want_ms);
        bad = 1;
    }
}
static void *run(void *unused) {
    int word = 0;
    while (!unused && !stop) {
        struct pollfd f = {p[0], POLLIN, 0};
        struct epoll_event e;
        struct timespec ts = {0, 7000000};
        struct timeval tv = {0, 7000};
        fd_set s;
        int64_t at = now_ns(CLOCK_MONOTONIC);
        judge("poll", poll(&f, 1, 7), at, 7);
        at = now_ns(CLOCK_MONOTONIC);
        judge("epoll_wait", epoll_wait(ep, &e, 1, 7), at, 7);
        FD_ZERO(&s);
        FD_SET(p[0], &s);
        at = now_ns(CLOCK_MONOTONIC);
        judge("select", select(p[0] + 1, &s, NULL, NULL, &tv), at, 7);
        at = now_ns(CLOCK_MONOTONIC);
        long r = syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &ts, NULL, 0);
        judge("futex", r == -1 && errno == ETIMEDOUT ? 0 : r ? r : -99, at, 7);
        at = now_ns(CLOCK_MONOTONIC);
        judge("nanosleep", nanosleep(&ts, NULL), at, 7);
        rounds++;
    }
    return NULL;
}
static void setup(void) {
    ep = MUST(epoll_create1(0));
    MUST(pipe(p));
    ZERO(pthread_create(&t, NULL, run, NULL));
}
static void check(void) {
    int before = rounds;
    CHECK(WAIT_FOR(rounds > before + 2, 3000), "the thread does not go on");
    CHECK(!bad, "%s", why);
}
static void mutate(void) {
    stop = 1;
    pthread_join(t, NULL);
}
