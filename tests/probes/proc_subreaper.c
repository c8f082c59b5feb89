/* A child subreaper gets the orphans below it. */
#include "probe.h"

static agent a;
static pid_t orphan;
static long work(int cmd) {
    int on = 0;
    switch (cmd) {
    case 's':
        MUST(prctl(PR_SET_CHILD_SUBREAPER, 1));
        pid_t *shared = map_shared(PAGE), p = MUST(fork());
        if (!p) {
            pid_t q = fork();
            if (!q)
                for (;;) pause();
            *shared = q;
            _exit(0);
        }
        MUST(waitpid(p, NULL, 0));
        WAIT_FOR(*shared, 1000);
        return *shared;
    case 'c': MUST(prctl(PR_GET_CHILD_SUBREAPER, &on)); return on;
    case 'm': MUST(prctl(PR_SET_CHILD_SUBREAPER, 0)); break;
    }
    return 0;
}
static void setup(void) {
    a = agent_fork(work);
    orphan = owned_child(ask(&a, 's'));
    CHECK(WAIT_FOR(stat_field(orphan, 4) == a.pid, 1000), "the orphan went elsewhere");
}
static void check(void) {
    EQ(ask(&a, 'c'), 1);
    wait_state(orphan, 'S'), EQ(stat_field(orphan, 4), a.pid);
}
static void mutate(void) { ask(&a, 'm'); }
