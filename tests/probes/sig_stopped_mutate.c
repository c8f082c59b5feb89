/* Children that are running are running again after they were stopped in a branch that was left. */
#include "probe.h"

static agent a;
static long work(int cmd) { return cmd; }
static void setup(void) { a = agent_fork(work), ask(&a, 'x'); }
static void check(void) {
    int st = 0;
    EQ(waitpid(a.pid, &st, WNOHANG | WUNTRACED | WCONTINUED), 0);
    wait_state(a.pid, 'S');
    EQ(ask(&a, 'y'), 'y');
}
static void mutate(void) {
    MUST(kill(a.pid, SIGSTOP));
    wait_state(a.pid, 'T');
}
