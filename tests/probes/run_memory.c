/* Threads that allocate, fill, verify and free memory of all sizes, by malloc and by mmap. */
#include "run.h"

static _Thread_local struct {
    char *p;
    size_t n;
    uint64_t seed;
    int mapped;
} slot[64];
static _Thread_local uint64_t state;
static void round_of(int i) {
    if (!state) state = i + 1;
    for (int k = 0; k < 20; k++) {
        state = mix(state + 0x9e3779b97f4a7c15ULL);
        int at = state % 64;
        if (slot[at].p) {
            uint64_t *q = (void *)slot[at].p;
            for (size_t j = 0; j < slot[at].n / 8; j++)
                if (q[j] != mix(slot[at].seed + j)) run_bad("worker %d: a block of %zu differs at %zu", i, slot[at].n, j * 8);
            if (slot[at].mapped) munmap(slot[at].p, slot[at].n);
            else free(slot[at].p);
            slot[at].p = NULL;
        } else {
            slot[at].mapped = state >> 20 & 1;
            slot[at].n = slot[at].mapped ? (state >> 30) % 64 * PAGE + PAGE : ((state >> 30) % 20000 & ~7ULL) + 8;
            slot[at].p = slot[at].mapped ? mmap(NULL, slot[at].n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) : malloc(slot[at].n);
            slot[at].seed = state;
            fill(slot[at].p, slot[at].n, state);
        }
    }
}
static void setup(void) { run_as_threads(2); }
