/* Children that were replaced by younger ones (the ids may be taken by others) are back under their own ids. */
#include "probe.h"

static agent a[3];
static long work(int cmd) { return cmd == 'p' ? getpid() : cmd == 'P' ? getppid() : 0; }
static void setup(void) {
    for (int i = 0; i < 3; i++) a[i] = agent_fork(work);
}
static void check(void) {
    for (int i = 0; i < 3; i++) EQ(ask(&a[i], 'p'), a[i].pid), EQ(ask(&a[i], 'P'), getpid());
    pid_t p = fork_idle(); /* new ones go on getting new ids */
    for (int i = 0; i < 3; i++) CHECK(p != a[i].pid, "process id %d was given twice", p);
    MUST(kill(p, SIGKILL)), EQ(waitpid(p, NULL, 0), p);
}
static void mutate(void) {
    for (int i = 0; i < 3; i++) kill(a[i].pid, SIGKILL);
    for (int i = 0; i < 3; i++) TRY(waitpid(a[i].pid, NULL, 0));
    char last[32];
    int fd = open("/proc/sys/kernel/ns_last_pid", O_WRONLY);
    if (fd >= 0) { /* take the very ids, where we may */
        snprintf(last, sizeof last, "%d", a[0].pid - 1);
        TRY(write(fd, last, strlen(last)));
        close(fd);
    }
    for (int i = 0; i < 20; i++) fork_idle();
}
