/* A parent suspended by vfork while its child works: it goes on when the child is done. */
#include "probe.h"

static struct {
    volatile int go, in_child, after;
} *s;
static pid_t parent;
static void setup(void) {
    s = map_shared(PAGE);
    parent = fork_child();
    if (!parent) {
        pid_t p = vfork();
        if (!p) {
            s->in_child = 1;
            struct timespec t = {0, 5000000};
            while (!s->go) syscall(SYS_nanosleep, &t, NULL);
            _exit(6);
        }
        int st;
        waitpid(p, &st, 0);
        s->after = WEXITSTATUS(st);
        _exit(0);
    }
    CHECK(WAIT_FOR(s->in_child, 1000), "the child does not run");
}
static void check(void) {
    EQ(s->after, 0), EQ(s->go, 0);
    s->go = 1;
    CHECK(WAIT_FOR(s->after, 2000), "the parent does not go on");
    EQ(s->after, 6);
}
static void mutate(void) {
    s->go = 1;
    WAIT_FOR(s->after, 2000);
}
