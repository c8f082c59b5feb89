/* Memory marked MADV_FREE holds its old content or zeros, and new content stays. */
#include "probe.h"

#define N (1UL << 20)
static char *p;
static void setup(void) {
    p = map_anon(N), fill(p, N, 95);
    MUST(madvise(p, N, MADV_FREE));
    fill(p + N / 2, N / 2, 96);
}
static void check(void) {
    want_fill("what was written after", p + N / 2, N / 2, 96);
    for (unsigned long i = 0; i < N / 2; i += PAGE) {
        uint64_t v = *(uint64_t *)(p + i);
        CHECK(v == 0 || v == mix(95 + i / 8), "page %lu holds neither zeros nor its content", i / PAGE);
    }
}
static void mutate(void) { memset(p, 3, N); }
