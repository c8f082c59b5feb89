/* Locks of flock(2) show who took them: a child that has the descriptor, one that has closed it, one that has ended. */
#include "probe.h"

static agent a, b;
static int fd[3];
static long work(int cmd) {
    if (cmd == '0') MUST(flock(fd[0], LOCK_EX));
    if (cmd == '1') MUST(flock(fd[1], LOCK_SH)), close(fd[1]);
    if (cmd == 'u') MUST(flock(fd[0], LOCK_UN));
    return getpid();
}
static void setup(void) {
    static const char *names[3] = {"x", "y", "z"};
    for (int i = 0; i < 3; i++) fd[i] = MUST(open(names[i], O_RDWR | O_CREAT, 0644));
    a = agent_fork(work), b = agent_fork(work);
    ask(&a, '0'), ask(&b, '1');
    pid_t gone = MUST(fork());
    if (gone == 0) _exit(flock(fd[2], LOCK_EX) != 0);
    int status;
    MUST(waitpid(gone, &status, 0)), EQ(status, 0);
}
static void want_lock(int at, const char *how, int taker) {
    char path[64], line[256], mode[16];
    int pid = -1, found = 0;
    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", at);
    FILE *f = fopen(path, "r");
    CHECK(f, "no fdinfo");
    while (fgets(line, sizeof line, f)) found += sscanf(line, "lock: %*d: FLOCK ADVISORY %15s %d", mode, &pid) == 2;
    fclose(f);
    CHECK(found == 1 && !strcmp(mode, how), "%d locks of descriptor %d, the last %s", found, at, mode);
    CHECK(pid == taker, "process %d has taken it, not %d", pid, taker);
}
static void check(void) {
    want_lock(fd[0], "WRITE", a.pid), want_lock(fd[1], "READ", b.pid), want_lock(fd[2], "WRITE", 0);
    ask(&a, 'u');
    EQ(flock(fd[0], LOCK_EX | LOCK_NB), 0);
}
static void mutate(void) {
    MUST(flock(fd[0], LOCK_SH)), MUST(flock(fd[1], LOCK_EX)), MUST(flock(fd[2], LOCK_UN));
}
