/* The signal a child gets when its parent dies is still set, and still comes. */
#include "probe.h"

static agent parent;
static int *childs;
static long work(int cmd) {
    if (cmd == 's') {
        pid_t p = MUST(fork());
        if (!p) {
            sigset_t s;
            sigemptyset(&s), sigaddset(&s, SIGUSR2), sigprocmask(SIG_BLOCK, &s, NULL);
            prctl(PR_SET_PDEATHSIG, SIGUSR2);
            childs[1] = 1;
            siginfo_t i;
            sigwaitinfo(&s, &i);
            childs[2] = i.si_pid;
            _exit(0);
        }
        *childs = p;
        WAIT_FOR(childs[1], 1000);
    }
    return 0;
}
static void setup(void) {
    childs = map_shared(PAGE);
    parent = agent_fork(work);
    ask(&parent, 's');
    owned_child(*childs);
    wait_state(*childs, 'S');
}
static void check(void) {
    EQ(childs[2], 0);
    wait_state(*childs, 'S');
    MUST(kill(parent.pid, SIGKILL));
    CHECK(WAIT_FOR(childs[2] == parent.pid, 2000), "the signal came from %d", childs[2]);
}
static void mutate(void) {
    kill(parent.pid, SIGKILL);
    TRY(waitpid(parent.pid, NULL, 0));
    WAIT_FOR(childs[2], 1000);
}
