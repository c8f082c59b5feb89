/* Anonymous memory gives zeros after MADV_DONTNEED, also when it was restored before (allocators rely on it). */
#include "probe.h"

#define N (4UL << 20)
static char *p;
static void setup(void) { p = map_anon(N), fill(p, N, 91); }
static void check(void) {
    want_fill("the region", p, N, 91);
    MUST(madvise(p, N / 2, MADV_DONTNEED));
    want_zero("what was given back", p, N / 2);
    want_fill("what was kept", p + N / 2, N / 2, 91 + N / 16);
}
static void mutate(void) {
    MUST(madvise(p + N / 4, N / 2, MADV_DONTNEED));
    memset(p, 1, PAGE);
}
