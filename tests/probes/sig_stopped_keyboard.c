/* A child of two threads stopped from the keyboard, which its parent has not been told but by a signal: it is told once,
 * of the right signal, and all its threads are stopped. */
#include "probe.h"

static agent a;
static volatile int told;
static volatile long *ticks;
static void heard(int sig) { told += sig == SIGCHLD; }
static void ignored(int sig) { (void)sig; }
static void *tick(void *p) {
    for (;;) sleep_ms(1), (*ticks)++;
    return p;
}
static long work(int cmd) {
    pthread_t t;
    if (cmd == 's') MUST(setpgid(0, 0)), ZERO(pthread_create(&t, NULL, tick, NULL));
    if (cmd == 'm') signal(SIGTSTP, ignored), signal(SIGCONT, SIG_IGN);
    return cmd;
}
static void setup(void) {
    ticks = map_shared(PAGE);
    struct sigaction s = {.sa_handler = heard, .sa_flags = SA_RESTART};
    MUST(sigaction(SIGCHLD, &s, NULL));
    a = agent_fork(work);
    ask(&a, 's');
    CHECK(WAIT_FOR(*ticks > 3, 2000), "the thread does not run");
    MUST(kill(a.pid, SIGTSTP));
    wait_state(a.pid, 'T');
    CHECK(WAIT_FOR(told == 1, 2000), "the parent is not told");
}
static void check(void) {
    int st;
    long before = *ticks;
    sleep_ms(20);
    EQ(told, 1), EQ(*ticks, before);
    EQ(waitpid(a.pid, &st, WUNTRACED | WCONTINUED | WNOHANG), a.pid);
    CHECK(WIFSTOPPED(st) && WSTOPSIG(st) == SIGTSTP, "the stop is told as %x", st);
    EQ(waitpid(a.pid, &st, WUNTRACED | WCONTINUED | WNOHANG), 0);
    MUST(kill(a.pid, SIGCONT));
    CHECK(WAIT_FOR(*ticks > before + 3, 2000), "the thread does not go on");
    EQ(told, 2), EQ(ask(&a, 'y'), 'y');
    EQ(waitpid(a.pid, &st, WCONTINUED | WNOHANG), a.pid);
}
static void mutate(void) {
    int st;
    TRY(waitpid(a.pid, &st, WUNTRACED | WNOHANG));
    MUST(kill(a.pid, SIGCONT));
    ask(&a, 'm');
}
