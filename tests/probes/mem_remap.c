/* Mappings that were moved, grown, shrunk and swapped since are where and what they were. */
#include "probe.h"

#define N (16 * PAGE)
static char *p[4];
static void setup(void) {
    char *room = map_anon(64 * N); /* kept free around each */
    MUST(munmap(room, 64 * N));
    for (int i = 0; i < 4; i++) {
        p[i] = MUST(mmap(room + 16 * i * N, N, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0));
        fill(p[i], N, 80 + i);
    }
}
static int mapped(char *at) {
    unsigned char v;
    return mincore(at, PAGE, &v) == 0;
}
static void check(void) {
    for (int i = 0; i < 4; i++) {
        CHECK(mapped(p[i]) && mapped(p[i] + N - PAGE), "mapping %d is gone", i);
        want_fill("a mapping", p[i], N, 80 + i);
        CHECK(!mapped(p[i] + N), "mapping %d has grown", i);
    }
}
static void mutate(void) {
    MUST(mremap(p[0], N, 2 * N, 0));
    MUST(mremap(p[1], N, N / 2, 0));
    char *aside = p[3] + 4 * N;
    MUST(mremap(p[2], N, N, MREMAP_MAYMOVE | MREMAP_FIXED, aside));
    MUST(mremap(p[3], N, N, MREMAP_MAYMOVE | MREMAP_FIXED, p[2]));
    MUST(mremap(aside, N, N, MREMAP_MAYMOVE | MREMAP_FIXED, p[3]));
}
