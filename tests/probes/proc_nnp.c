/* no_new_privs: the kernel has no way back, so only a process made anew is without it again. */
#include "probe.h"

static agent with, without;
static int base;
static long work(int cmd) {
    if (cmd == 's') MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    return prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0);
}
static void setup(void) {
    base = work(0);
    with = agent_fork(work), without = agent_fork(work);
    ask(&with, 's');
}
static void check(void) { EQ(ask(&with, 'c'), 1), EQ(ask(&without, 'c'), base); }
static void mutate(void) {
    if (base) noop("every process here has no_new_privs already");
    ask(&without, 's');
}
