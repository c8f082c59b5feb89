/* 68 MB of 128 MB rewritten. */
#include "probe.h"

#define N (128UL << 20)
static char *p;
static void setup(void) { p = map_anon(N), fill(p, N, 17); }
static void check(void) { want_fill("the region", p, N, 17); }
static void mutate(void) { fill(p + (10 << 20), 68UL << 20, 18); }
