/* Single bytes changed here and there in a large region are put back, and nothing beside them. */
#include "probe.h"

#define N (32UL << 20)
static char *p;
static uint64_t turn;
static void setup(void) { p = map_anon(N), fill(p, N, 99); }
static void check(void) { want_fill("the region", p, N, 99); }
static void mutate(void) {
    turn = now_ns(CLOCK_MONOTONIC);
    for (int i = 0; i < 500; i++) p[mix(turn + i) % N] ^= 0x55;
}
