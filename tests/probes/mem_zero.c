/* Pages that were only ever read, and pages never touched, stay zero and cost nothing. */
#include "probe.h"

#define N (64UL << 20)
static char *p;
static void setup(void) {
    p = map_anon(N);
    want_zero("new memory", p, N / 2);
}
static void check(void) {
    want_zero("the memory", p, N / 2);
    want_zero("the memory", p + N / 2, N / 4);
}
static void mutate(void) {
    for (unsigned long i = 0; i < N; i += 8 * PAGE) p[i] = 1;
}
