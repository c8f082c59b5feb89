/* Memory sealed since (mseal, Linux 6.10) cannot be unsealed: the process is made anew. */
#include "probe.h"

#ifndef SYS_mseal
#define SYS_mseal 462
#endif
static agent a;
static char *p;
static long work(int cmd) {
    if (cmd == 's') p = map_anon(4 * PAGE), fill(p, 4 * PAGE, 9);
    if (cmd == 'c') {
        want_fill("the memory", p, 4 * PAGE, 9);
        MUST(mprotect(p, PAGE, PROT_READ)), MUST(mprotect(p, PAGE, PROT_READ | PROT_WRITE));
    }
    if (cmd == 'm') {
        p[0]++;
        if (syscall(SYS_mseal, p, 4 * PAGE, 0) < 0) return errno;
    }
    return 0;
}
static void setup(void) { a = agent_fork(work), ask(&a, 's'); }
static void check(void) { ask(&a, 'c'); }
static void mutate(void) { ask(&a, 'm'); }
