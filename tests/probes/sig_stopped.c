/* A stopped child whose stop was already reported, and one whose stop was not; both can be continued. */
#include "probe.h"

static pid_t told, untold;
static void setup(void) {
    told = fork_idle(), untold = fork_idle();
    sleep_ms(10);
    MUST(kill(told, SIGSTOP)), MUST(kill(untold, SIGSTOP));
    int st;
    EQ(waitpid(told, &st, WUNTRACED), told);
    wait_state(untold, 'T');
}
static void check(void) {
    int st;
    EQ(task_state(told), 'T'), EQ(task_state(untold), 'T');
    EQ(waitpid(told, &st, WUNTRACED | WNOHANG), 0);
    EQ(waitpid(untold, &st, WUNTRACED | WNOHANG), untold);
    CHECK(WIFSTOPPED(st) && WSTOPSIG(st) == SIGSTOP, "the stop is told as %x", st);
    for (int i = 0; i < 2; i++) {
        pid_t p = i ? told : untold;
        MUST(kill(p, SIGCONT));
        wait_state(p, 'S');
        CHECK(WAIT_FOR(waitpid(p, &st, WCONTINUED | WNOHANG) == p, 2000), "the continuing of %d is not told", p);
        CHECK(WIFCONTINUED(st), "the continuing is told as %x", st);
    }
}
static void mutate(void) {
    MUST(kill(told, SIGCONT)), MUST(kill(untold, SIGKILL));
    TRY(waitpid(untold, NULL, 0));
    wait_state(told, 'S');
}
