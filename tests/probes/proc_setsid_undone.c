/* A process that called setsid after the checkpoint is again in the old session: it can do so again. */
#include "probe.h"

static agent a;
static pid_t sid, pgid;
static long work(int cmd) {
    if (cmd == 's') return MUST(setsid());
    return 0;
}
static void setup(void) {
    a = agent_fork(work);
    sid = getsid(a.pid), pgid = getpgid(a.pid);
}
static void check(void) {
    EQ(getsid(a.pid), sid), EQ(getpgid(a.pid), pgid);
    EQ(ask(&a, 's'), a.pid);
}
static void mutate(void) { ask(&a, 's'); }
