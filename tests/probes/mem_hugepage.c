/* A region on transparent huge pages, changed in a few bytes. */
#include "probe.h"

#define N (16UL << 20)
static char *p;
static void setup(void) {
    char *q = map_anon(N + (2 << 20));
    p = (char *)(((uintptr_t)q + (2 << 20) - 1) & ~((2UL << 20) - 1));
    TRY(madvise(p, N, MADV_HUGEPAGE));
    fill(p, N, 44);
}
static void check(void) { want_fill("the region", p, N, 44); }
static void mutate(void) {
    for (unsigned long i = 0; i < N; i += 2 << 20) p[i + 12345]++;
    MUST(madvise(p + (4 << 20), 2 << 20, MADV_DONTNEED));
    MUST(mprotect(p + (8 << 20) + 5 * PAGE, PAGE, PROT_READ));
}
