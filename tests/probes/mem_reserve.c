/* A terabyte reserved, a few pages of it used (as Go, the JVM and sanitizers do). */
#include "probe.h"

#define N (1UL << 40)
static char *p;
static char *at(int i) { return p + (mix(i) % (N / PAGE)) * PAGE; }
static void setup(void) {
    p = MUST(mmap(NULL, N, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    for (int i = 0; i < 200; i++) {
        MUST(mprotect(at(i), PAGE, PROT_READ | PROT_WRITE));
        fill(at(i), PAGE, i);
    }
}
static void check(void) {
    for (int i = 0; i < 200; i++) want_fill("a page of it", at(i), PAGE, i);
}
static void mutate(void) {
    for (int i = 0; i < 200; i += 2) memset(at(i), 1, PAGE);
    for (int i = 200; i < 300; i++) {
        MUST(mprotect(at(i), PAGE, PROT_READ | PROT_WRITE));
        memset(at(i), 1, PAGE);
    }
}
