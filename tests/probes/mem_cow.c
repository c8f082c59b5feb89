/* Parent and child after fork: pages shared until written, different where written. */
#include "probe.h"

#define N (4UL << 20)
static char *p;
static agent a;
static long work(int cmd) {
    if (cmd == 's') for (unsigned long i = 0; i < N; i += 4 * PAGE) fill(p + i, PAGE, 1000 + i);
    if (cmd == 'c')
        for (unsigned long i = 0; i < N; i += PAGE) want_fill("the child's memory", p + i, PAGE, i % (4 * PAGE) ? i : 1000 + i);
    if (cmd == 'm') memset(p, 4, N);
    return 0;
}
static void setup(void) {
    p = map_anon(N);
    for (unsigned long i = 0; i < N; i += PAGE) fill(p + i, PAGE, i);
    a = agent_fork(work);
    ask(&a, 's');
}
static void check(void) {
    for (unsigned long i = 0; i < N; i += PAGE) want_fill("the parent's memory", p + i, PAGE, i);
    ask(&a, 'c');
}
static void mutate(void) { ask(&a, 'm'), memset(p + N / 2, 1, N / 2); }
