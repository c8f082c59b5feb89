/* 200 neighbouring pieces with every protection, as the kernel lists them. */
#include "probe.h"

static char *p;
static const int prot[8] = {0, 1, 2, 3, 4, 5, 6, 7};
static void setup(void) {
    p = map_anon(200 * PAGE);
    fill(p, 200 * PAGE, 71);
    for (int i = 0; i < 200; i++) MUST(mprotect(p + i * PAGE, PAGE, prot[i * 7 % 8]));
}
static void check(void) {
    FILE *f = fopen("/proc/self/maps", "re");
    CHECK(f, "no maps");
    char line[512];
    int seen = 0;
    while (fgets(line, sizeof line, f)) {
        unsigned long from, to;
        char m[5];
        if (sscanf(line, "%lx-%lx %4s", &from, &to, m) != 3) continue;
        for (unsigned long at = from; at < to; at += PAGE) {
            if (at < (unsigned long)p || at >= (unsigned long)p + 200 * PAGE) continue;
            int i = (at - (unsigned long)p) / PAGE, w = prot[i * 7 % 8];
            int got = (m[0] == 'r' ? 1 : 0) | (m[1] == 'w' ? 2 : 0) | (m[2] == 'x' ? 4 : 0);
            if (got != w) fclose(f), fail("page %d is %s", i, m);
            seen++;
        }
    }
    fclose(f);
    EQ(seen, 200);
    MUST(mprotect(p, 200 * PAGE, PROT_READ | PROT_WRITE));
    want_fill("the content", p, 200 * PAGE, 71);
}
static void mutate(void) {
    MUST(mprotect(p, 100 * PAGE, PROT_READ | PROT_WRITE));
    memset(p, 5, 100 * PAGE);
    MUST(munmap(p + 150 * PAGE, 10 * PAGE));
}
