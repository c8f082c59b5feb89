/* The secure bits of a process. */
#include "probe.h"
#include <linux/securebits.h>

static agent a;
static long work(int cmd) {
    if (cmd == 's') return prctl(PR_SET_SECUREBITS, SECBIT_NOROOT | SECBIT_NO_SETUID_FIXUP) < 0 ? errno : 0;
    if (cmd == 'm') MUST(prctl(PR_SET_SECUREBITS, SECBIT_NOROOT | SECBIT_NOROOT_LOCKED));
    if (cmd == 'c') EQ(prctl(PR_GET_SECUREBITS), SECBIT_NOROOT | SECBIT_NO_SETUID_FIXUP);
    return 0;
}
static void setup(void) {
    a = agent_fork(work);
    if (ask(&a, 's')) skip("setting secure bits is not allowed here");
}
static void check(void) { ask(&a, 'c'); }
static void mutate(void) { ask(&a, 'm'); }
