/* A heap of 64 MB in many small blocks; half of it is rewritten. */
#include "probe.h"

#define N 65536
static uint64_t **block;
static void setup(void) {
    block = calloc(N, sizeof *block);
    for (int i = 0; i < N; i++) {
        block[i] = malloc(1000);
        fill(block[i], 1000, i);
    }
}
static void check(void) {
    for (int i = 0; i < N; i++) want_fill("a block of the heap", block[i], 1000, i);
}
static void mutate(void) {
    for (int i = 0; i < N; i += 2) {
        free(block[i]);
        block[i] = malloc(1016);
        memset(block[i], 1, 1016);
    }
    for (int i = 1; i < N; i += 8) block[i][3]++;
}
