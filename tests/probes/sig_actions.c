/* Signal actions: handler, flags, mask; ignored and default ones. */
#include "probe.h"

struct kernel_action {
    unsigned long handler, flags, restorer, mask;
};
static struct kernel_action want[65];

static void get(int s, struct kernel_action *a) { MUST(syscall(SYS_rt_sigaction, s, NULL, a, 8)); }
static void h1(int s) { (void)s; }
static void h2(int s, siginfo_t *i, void *c) { (void)s, (void)i, (void)c; }
static void setup(void) {
    struct sigaction a = {.sa_handler = h1, .sa_flags = SA_RESTART | SA_NODEFER};
    sigaddset(&a.sa_mask, SIGINT), sigaddset(&a.sa_mask, SIGRTMAX);
    MUST(sigaction(SIGUSR1, &a, NULL));
    struct sigaction b = {.sa_sigaction = h2, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESETHAND | SA_NOCLDWAIT};
    MUST(sigaction(SIGRTMAX, &b, NULL));
    MUST(sigaction(SIGHUP, &b, NULL));
    signal(SIGPIPE, SIG_IGN), signal(SIGTTOU, SIG_IGN), signal(SIGWINCH, SIG_DFL);
    for (int s = 1; s <= 64; s++) get(s, &want[s]);
}
static void check(void) {
    for (int s = 1; s <= 64; s++) {
        struct kernel_action a;
        get(s, &a);
        CHECK(!memcmp(&a, &want[s], sizeof a), "the action of signal %d: handler %lx, flags %lx, mask %lx", s, a.handler, a.flags, a.mask);
    }
}
static void mutate(void) {
    signal(SIGUSR1, SIG_IGN), signal(SIGHUP, SIG_DFL), signal(SIGPIPE, h1), signal(SIGTTOU, SIG_DFL), signal(SIGQUIT, SIG_IGN);
}
