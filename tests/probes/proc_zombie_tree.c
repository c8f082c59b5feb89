/* A zombie of a child (not of ours), and a zombie that leads a process group with living members. */
#include "probe.h"

static agent a;
static pid_t grandchild, leader, member;
static long work(int cmd) {
    int st = 0;
    if (cmd == 's') {
        pid_t p = MUST(fork());
        if (!p) _exit(55);
        wait_state(p, 'Z');
        return p;
    }
    if (cmd == 'w') {
        EQ(waitpid(-1, &st, WNOHANG), grandchild);
        return WEXITSTATUS(st);
    }
    if (cmd == 'm') TRY(waitpid(-1, NULL, 0));
    return 0;
}
static void setup(void) {
    a = agent_fork(work);
    leader = fork_idle(), member = fork_idle();
    MUST(setpgid(leader, leader)), MUST(setpgid(member, leader));
    kill(leader, SIGKILL);
    wait_state(leader, 'Z');
    grandchild = ask(&a, 's');
}
static void check(void) {
    EQ(task_state(grandchild), 'Z'), EQ(stat_field(grandchild, 4), a.pid);
    EQ(task_state(leader), 'Z'), EQ(getpgid(member), leader), EQ(getpgid(leader), leader);
    MUST(kill(-leader, 0));
    int st;
    EQ(waitpid(leader, &st, WNOHANG), leader);
    EQ(WTERMSIG(st), SIGKILL);
}
static void mutate(void) {
    ask(&a, 'm');
    TRY(waitpid(leader, NULL, 0));
    kill(member, SIGKILL);
    TRY(waitpid(member, NULL, 0));
}
