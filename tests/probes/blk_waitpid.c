/* A parent blocked in waitpid gets the status of its child; wait4 and waitid too. */
#include "probe.h"

static pid_t kid[3];
static blocked b[3];
static long w0(void) {
    int st;
    return waitpid(kid[0], &st, 0) == kid[0] ? WTERMSIG(st) : -1;
}
static long w1(void) {
    struct rusage ru;
    int st;
    return wait4(kid[1], &st, 0, &ru) == kid[1] ? WTERMSIG(st) : -1;
}
static long w2(void) {
    siginfo_t i;
    return waitid(P_PID, kid[2], &i, WEXITED) == 0 && i.si_pid == kid[2] ? i.si_status : -1;
}
static void setup(void) {
    for (int i = 0; i < 3; i++) kid[i] = fork_idle();
    block_in(&b[0], w0), block_in(&b[1], w1), block_in(&b[2], w2);
}
static void check(void) {
    for (int i = 0; i < 3; i++) want_blocked(&b[i]);
    for (int i = 0; i < 3; i++) MUST(kill(kid[i], SIGTERM)), want_return(&b[i], SIGTERM);
}
static void mutate(void) {
    for (int i = 0; i < 3; i++) kill(kid[i], SIGKILL), WAIT_FOR(b[i].done, 1000);
}
