/* 3,000 mappings. */
#include "probe.h"

#define N 3000
static char *p;
static void setup(void) {
    p = map_anon(2 * N * PAGE);
    for (int i = 0; i < N; i++) {
        fill(p + 2 * i * PAGE, PAGE, i);
        MUST(mprotect(p + (2 * i + 1) * PAGE, PAGE, i % 2 ? PROT_NONE : PROT_READ));
    }
}
static int count(void) {
    FILE *f = fopen("/proc/self/maps", "re");
    CHECK(f, "no maps");
    char line[512];
    int n = 0;
    while (fgets(line, sizeof line, f)) n++;
    fclose(f);
    return n;
}
static void check(void) {
    int n = count();
    CHECK(n >= 2 * N && n < 2 * N + 200, "%d mappings", n);
    for (int i = 0; i < N; i++) want_fill("a page", p + 2 * i * PAGE, PAGE, i);
}
static void mutate(void) {
    for (int i = 0; i < N; i += 5) MUST(munmap(p + 2 * i * PAGE, PAGE));
    for (int i = 1; i < N; i += 5) MUST(mprotect(p + (2 * i + 1) * PAGE, PAGE, PROT_READ | PROT_WRITE));
    for (int i = 2; i < N; i += 5) p[2 * i * PAGE]++;
}
