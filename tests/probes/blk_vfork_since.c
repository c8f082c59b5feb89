/* A process that has made a child by vfork since, for which it waits and cannot be stopped: it is back all the same. */
#include "probe.h"

static agent a;
static volatile int *in_child;
static long work(int cmd) {
    if (cmd != 'm') return cmd;
    if (!vfork()) {
        *in_child = 1;
        for (;;) {
            struct timespec t = {1, 0};
            syscall(SYS_nanosleep, &t, NULL);
        }
    }
    return 0;
}
static void setup(void) { in_child = map_shared(PAGE), a = agent_fork(work), ask(&a, 'x'); }
static void check(void) {
    EQ(*in_child, 0);
    EQ(ask(&a, 'y'), 'y');
}
static void mutate(void) {
    tell(&a, 'm');
    CHECK(WAIT_FOR(*in_child, 2000), "the child does not run");
}
