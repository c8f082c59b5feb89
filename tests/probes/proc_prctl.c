/* What prctl(2) sets and can read back. */
#include "probe.h"
#include <linux/securebits.h>

static agent a;
static long work(int cmd) {
    int v;
    switch (cmd) {
    case 's':
        MUST(prctl(PR_SET_DUMPABLE, 0));
        MUST(prctl(PR_SET_PDEATHSIG, SIGUSR2));
        MUST(prctl(PR_SET_TIMERSLACK, 77777UL));
        MUST(prctl(PR_SET_NAME, "a (strange) one"));
        MUST(prctl(PR_SET_CHILD_SUBREAPER, 1));
        MUST(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0));
        MUST(prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0));
        break;
    case 'c':
        EQ(prctl(PR_GET_DUMPABLE), 0);
        MUST(prctl(PR_GET_PDEATHSIG, &v)), EQ(v, SIGUSR2);
        EQ(prctl(PR_GET_TIMERSLACK), 77777);
        char n[16];
        MUST(prctl(PR_GET_NAME, n));
        CHECK(!strcmp(n, "a (strange) one"), "the name is %s", n);
        MUST(prctl(PR_GET_CHILD_SUBREAPER, &v)), EQ(v, 1);
        EQ(prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0), 1);
        EQ(prctl(PR_MCE_KILL_GET, 0, 0, 0, 0), PR_MCE_KILL_EARLY);
        break;
    case 'm':
        MUST(prctl(PR_SET_DUMPABLE, 1));
        MUST(prctl(PR_SET_PDEATHSIG, 0));
        MUST(prctl(PR_SET_TIMERSLACK, 1UL));
        MUST(prctl(PR_SET_NAME, "changed"));
        MUST(prctl(PR_SET_CHILD_SUBREAPER, 0));
        MUST(prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0));
        MUST(prctl(PR_MCE_KILL, PR_MCE_KILL_CLEAR, 0, 0, 0));
        break;
    }
    return 0;
}
static void setup(void) { a = agent_fork(work), ask(&a, 's'); }
static void check(void) { ask(&a, 'c'); }
static void mutate(void) { ask(&a, 'm'); }
