/* A tree of processes three levels deep: the same ids, the same parents. */
#include "probe.h"

static struct {
    pid_t pid[13], ppid[13];
} *t;

static void node(int i) {
    t->ppid[i] = getppid();
    for (int k = 1; k <= 3; k++) {
        int c = i * 3 + k;
        if (c >= 13) break;
        pid_t p = fork();
        if (!p) node(c);
        t->pid[c] = p;
    }
    if (i)
        for (;;) pause();
}
static void setup(void) {
    t = map_shared(PAGE);
    t->pid[0] = getpid();
    node(0);
    for (int i = 1; i < 13; i++) {
        CHECK(WAIT_FOR(t->pid[i] && t->ppid[i], 2000), "process %d did not start", i);
        owned_child(t->pid[i]);
        wait_state(t->pid[i], 'S');
    }
}
static void check(void) {
    for (int i = 1; i < 13; i++) {
        wait_state(t->pid[i], 'S');
        EQ(stat_field(t->pid[i], 4), t->pid[(i - 1) / 3]);
    }
    int kids = 0;
    siginfo_t si = {0};
    EQ(waitid(P_ALL, 0, &si, WEXITED | WNOHANG | WNOWAIT), 0);
    EQ(si.si_pid, 0);
    for (int i = 1; i <= 3; i++) kids += kill(t->pid[i], 0) == 0;
    EQ(kids, 3);
}
static void mutate(void) {
    kill(t->pid[1], SIGKILL), kill(t->pid[12], SIGKILL), kill(t->pid[6], SIGKILL);
    TRY(waitpid(t->pid[1], NULL, 0));
    for (int i = 0; i < 5; i++) fork_idle();
}
