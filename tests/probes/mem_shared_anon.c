/* Shared anonymous memory between parent, child and grandchild, mapped at its place in each. */
#include "probe.h"

#define N (1UL << 20)
static char *p;
static agent a;
static long work(int cmd) {
    if (cmd == 'c') want_fill("seen from the child", p, N, 5);
    if (cmd == 'w') strcpy(p, "written by the child");
    if (cmd == 'm') fill(p + N / 2, N / 2, 8);
    if (cmd == 'u') MUST(munmap(p, N));
    return 0;
}
static void setup(void) {
    p = map_shared(N);
    fill(p, N, 5);
    a = agent_fork(work);
}
static void check(void) {
    want_fill("seen from the parent", p, N, 5);
    ask(&a, 'c'), ask(&a, 'w');
    CHECK(!strcmp(p, "written by the child"), "the memory is not shared any more");
}
static void mutate(void) { ask(&a, 'm'), fill(p, N / 2, 77), ask(&a, 'u'); }
