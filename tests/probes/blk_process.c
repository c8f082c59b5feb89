/* Single-threaded processes blocked in calls with time limits, told by the clock when they come back. */
#include "probe.h"

static struct {
    volatile int started[4], ret[4], err[4], ms[4];
} *s;
static int p[2];
static void one(int i) {
    struct timespec t = {1, 500000000};
    struct pollfd f = {p[0], POLLIN, 0};
    int64_t at = now_ms();
    int word = 0, r = 0;
    s->started[i] = 1;
    errno = 0;
    switch (i) {
    case 0: r = syscall(SYS_nanosleep, &t, NULL); break;
    case 1: r = poll(&f, 1, 1500); break;
    case 2: r = syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &t, NULL, 0); break;
    case 3: r = syscall(SYS_ppoll, NULL, 0, &t, NULL, 8); break;
    }
    s->err[i] = errno, s->ret[i] = r, s->ms[i] = now_ms() - at;
    _exit(0);
}
static pid_t kid[4];
static int mutated;
static void setup(void) {
    s = map_shared(PAGE);
    MUST(pipe(p));
    for (int i = 0; i < 4; i++) {
        kid[i] = fork_child();
        if (!kid[i]) one(i);
        CHECK(WAIT_FOR(s->started[i], 1000), "child %d did not start", i);
    }
    for (int i = 0; i < 4; i++) wait_state(kid[i], 'S');
}
static void check(void) {
    CHECK(!mutated, "the state was changed");
    for (int i = 0; i < 4; i++) {
        CHECK(WAIT_FOR(s->ms[i], 8000), "call %d does not end", i);
        EQ(s->err[i], i == 2 ? ETIMEDOUT : 0), EQ(s->ret[i], i == 2 ? -1 : 0);
        CHECK(s->ms[i] >= 1490, "call %d ended after %d ms of 1500", i, s->ms[i]);
    }
}
static void mutate(void) {
    mutated = 1;
    for (int i = 0; i < 4; i++) kill(kid[i], SIGKILL);
    for (int i = 0; i < 4; i++) TRY(waitpid(kid[i], NULL, 0));
}
