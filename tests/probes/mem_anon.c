/* Private anonymous memory: dense, sparse and never touched parts. */
#include "probe.h"

#define N (8UL << 20)
static char *p;
static void setup(void) {
    p = map_anon(N);
    fill(p, 2 << 20, 1);
    for (unsigned long i = 2 << 20; i < 6 << 20; i += 16 * PAGE) fill(p + i, PAGE, i);
}
static void check(void) {
    want_fill("the dense part", p, 2 << 20, 1);
    for (unsigned long i = 2 << 20; i < 6 << 20; i += 16 * PAGE) {
        want_fill("a page of the sparse part", p + i, PAGE, i);
        want_zero("a hole of the sparse part", p + i + PAGE, PAGE);
    }
    want_zero("the untouched part", p + (6 << 20), 2 << 20);
}
static void mutate(void) {
    for (unsigned long i = 0; i < N; i += PAGE) p[i + i / PAGE % PAGE]++;
}
