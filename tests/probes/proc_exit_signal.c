/* The signal a child sends when it ends (clone(2) lets the parent choose), and __WCLONE children. */
#include "probe.h"

static pid_t kid, silent;
static pid_t spawn(int sig) {
    pid_t p = MUST(syscall(SYS_clone, sig, NULL, NULL, NULL, NULL));
    if (!p)
        for (;;) pause();
    return owned_child(p);
}
static void setup(void) {
    kid = spawn(SIGUSR2), silent = spawn(0);
    signal(SIGUSR2, SIG_IGN);
}
static void check(void) {
    EQ(stat_field(kid, 38), SIGUSR2), EQ(stat_field(silent, 38), 0);
    int st;
    EQ(waitpid(kid, &st, WNOHANG), -1);
    EQ(waitpid(kid, &st, WNOHANG | __WCLONE), 0);
    EQ(waitpid(silent, &st, WNOHANG | __WCLONE), 0);
}
static void mutate(void) {
    kill(kid, SIGKILL), kill(silent, SIGKILL);
    TRY(waitpid(kid, NULL, __WCLONE));
    TRY(waitpid(silent, NULL, __WCLONE));
}
