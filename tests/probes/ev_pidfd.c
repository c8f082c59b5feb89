/* Process descriptors: of a living child, of a dead one, and of oneself. */
#include "probe.h"

static agent a;
static pid_t dead;
static int pa, pd, me;
static long work(int cmd) { return cmd; }
static int info_pid(int fd) {
    char path[64], line[128];
    int pid = 0;
    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
    FILE *f = fopen(path, "re");
    CHECK(f, "no fdinfo of %d", fd);
    while (fgets(line, sizeof line, f)) sscanf(line, "Pid: %d", &pid);
    fclose(f);
    return pid;
}
static void setup(void) {
    a = agent_fork(work);
    dead = fork_child();
    if (!dead) _exit(3);
    wait_state(dead, 'Z');
    pa = MUST(syscall(SYS_pidfd_open, a.pid, 0)), pd = MUST(syscall(SYS_pidfd_open, dead, 0)), me = MUST(syscall(SYS_pidfd_open, getpid(), 0));
}
static void check(void) {
    siginfo_t i = {0};
    EQ(info_pid(pa), a.pid), EQ(info_pid(me), getpid());
    EQ(readable(pa, 0), 0), EQ(readable(pd, 0), 1), EQ(readable(me, 0), 0);
    EQ(waitid(P_PIDFD, pd, &i, WEXITED | WNOHANG), 0), EQ(i.si_pid, dead), EQ(i.si_status, 3);
    MUST(syscall(SYS_pidfd_send_signal, pa, 0, NULL, 0));
    MUST(syscall(SYS_pidfd_send_signal, pa, SIGKILL, NULL, 0));
    CHECK(readable(pa, 2000), "the end of the child is not told");
    EQ(waitid(P_PIDFD, pa, &i, WEXITED), 0), EQ(i.si_pid, a.pid);
}
static void mutate(void) {
    kill(a.pid, SIGKILL);
    TRY(waitpid(a.pid, NULL, 0));
    TRY(waitpid(dead, NULL, 0));
}
