/* Two processes that share one descriptor table and one working directory (CLONE_FILES, CLONE_FS). */
#include "probe.h"

static struct {
    volatile int cmd, done, fd, cwd_ok;
} *s;
static pid_t kid;
static void setup(void) {
    s = map_shared(PAGE);
    MUST(mkdir("elsewhere", 0755));
    kid = MUST(syscall(SYS_clone, CLONE_FILES | CLONE_FS | SIGCHLD, NULL, NULL, NULL, NULL));
    if (!kid) {
        for (;;) {
            if (s->cmd != s->done) {
                s->fd = open("/dev/null", O_RDWR);
                s->done = s->cmd;
            }
            sleep_ms(2);
        }
    }
    owned_child(kid);
}
static void check(void) {
    EQ(syscall(SYS_kcmp, getpid(), kid, 2, 0, 0), 0); /* KCMP_FILES */
    EQ(syscall(SYS_kcmp, getpid(), kid, 3, 0, 0), 0); /* KCMP_FS */
    s->cmd++;
    CHECK(WAIT_FOR(s->cmd == s->done, 2000), "the other does not answer");
    struct stat st;
    MUST(fstat(s->fd, &st)); /* opened there, seen here */
    MUST(close(s->fd));
}
static void mutate(void) {
    kill(kid, SIGKILL);
    TRY(waitpid(kid, NULL, 0));
}
