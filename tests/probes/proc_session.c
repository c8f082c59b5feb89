/* Sessions and process groups: leaders, members, a group whose leader is gone. */
#include "probe.h"

static agent leader, member, other;
static pid_t gone;
static long work(int cmd) {
    if (cmd == 's') return MUST(setsid());
    if (cmd == 'g') return MUST(setpgid(0, 0));
    if (cmd == 'S') return getsid(0);
    if (cmd == 'G') return getpgrp();
    return 0;
}
static void setup(void) {
    leader = agent_fork(work), member = agent_fork(work), other = agent_fork(work);
    ask(&leader, 's');
    gone = fork_child();
    if (!gone) {
        setpgid(0, 0);
        pause();
        _exit(0);
    }
    CHECK(WAIT_FOR(getpgid(gone) == gone, 1000), "no group");
    MUST(setpgid(member.pid, gone));
    kill(gone, SIGKILL);
    MUST(waitpid(gone, NULL, 0));
    ask(&other, 'g');
}
static void check(void) {
    EQ(ask(&leader, 'S'), leader.pid), EQ(ask(&leader, 'G'), leader.pid);
    EQ(ask(&member, 'S'), getsid(0)), EQ(ask(&member, 'G'), gone);
    EQ(ask(&other, 'S'), getsid(0)), EQ(ask(&other, 'G'), other.pid);
    EQ(kill(gone, 0), -1);
}
static void mutate(void) {
    ask(&member, 's');
    MUST(setpgid(other.pid, getpgrp()));
}
