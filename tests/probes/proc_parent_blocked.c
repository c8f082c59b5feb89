/* A chain: a parent waiting for a child that waits for a child; the last one is killed after the rollback. */
#include "probe.h"

static pid_t top, *last;
static void setup(void) {
    last = map_shared(PAGE);
    top = fork_child();
    if (!top) {
        pid_t middle = fork();
        int st;
        if (!middle) {
            pid_t p = fork();
            if (!p)
                for (;;) pause();
            *last = p;
            waitpid(p, &st, 0);
            _exit(WIFSIGNALED(st) ? 100 + WTERMSIG(st) : 1);
        }
        waitpid(middle, &st, 0);
        _exit(WEXITSTATUS(st) + 50);
    }
    CHECK(WAIT_FOR(*last, 2000), "the chain did not start");
    wait_state(*last, 'S'), wait_state(top, 'S');
}
static void check(void) {
    int st;
    EQ(waitpid(top, &st, WNOHANG), 0);
    MUST(kill(*last, SIGTERM));
    CHECK(WAIT_FOR(waitpid(top, &st, WNOHANG) == top, 3000), "the chain does not end");
    EQ(WEXITSTATUS(st), 150 + SIGTERM);
}
static void mutate(void) {
    kill(*last, SIGKILL);
    TRY(waitpid(top, NULL, 0));
}
