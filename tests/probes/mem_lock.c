/* Locked memory: by mlock and by mlockall(MCL_FUTURE). */
#include "probe.h"

static agent a;
static char *p;
static char vmlck[64];
static long work(int cmd) {
    switch (cmd) {
    case 's':
        p = map_anon(8 * PAGE);
        if (mlock(p, 4 * PAGE) < 0 || mlockall(MCL_FUTURE) < 0) return errno;
        fill(p, 8 * PAGE, 4);
        break;
    case 'c': {
        want_fill("the memory", p, 8 * PAGE, 4);
        long before = atol(status_line(getpid(), "VmLck"));
        map_anon(16 * PAGE); /* locked at once */
        EQ(atol(status_line(getpid(), "VmLck")) - before, 64);
        break;
    }
    case 'm': MUST(munlockall()), memset(p, 0, PAGE); break;
    }
    return 0;
}
static void setup(void) {
    a = agent_fork(work);
    if (ask(&a, 's')) skip("locking memory is not allowed here");
    strcpy(vmlck, status_line(a.pid, "VmLck"));
}
static void check(void) {
    const char *now = status_line(a.pid, "VmLck");
    CHECK(!strcmp(now, vmlck), "locked are %s, not %s", now, vmlck);
    ask(&a, 'c');
}
static void mutate(void) { ask(&a, 'm'); }
