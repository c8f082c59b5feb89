/* A pending SIGCHLD with its siginfo, and the zombie that it tells of. */
#include "probe.h"

static sigset_t set;
static pid_t child;
static void setup(void) {
    sigemptyset(&set), sigaddset(&set, SIGCHLD);
    ZERO(pthread_sigmask(SIG_BLOCK, &set, NULL));
    child = fork_child();
    if (!child) _exit(77);
    wait_state(child, 'Z');
}
static void check(void) {
    struct timespec zero = {0, 0};
    siginfo_t i;
    CHECK(sigtimedwait(&set, &i, &zero) == SIGCHLD, "SIGCHLD is not pending");
    EQ(i.si_pid, child), EQ(i.si_code, CLD_EXITED), EQ(i.si_status, 77);
    int st;
    EQ(waitpid(child, &st, WNOHANG), child);
    EQ(WEXITSTATUS(st), 77);
}
static void mutate(void) {
    struct timespec zero = {0, 0};
    TRY(sigtimedwait(&set, NULL, &zero));
    TRY(waitpid(child, NULL, WNOHANG));
}
