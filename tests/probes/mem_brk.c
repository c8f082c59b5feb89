/* The end of the data segment. */
#include "probe.h"

static char *start;
static void setup(void) {
    start = sbrk(0);
    MUST(sbrk(40 * PAGE));
    start = (char *)(((uintptr_t)start + 7) & ~7UL);
    fill(start, 32 * PAGE, 14);
}
static void check(void) {
    CHECK((uintptr_t)sbrk(0) - (uintptr_t)start >= 39 * PAGE, "the break is at %p, below the data at %p", sbrk(0), start);
    want_fill("the data", start, 32 * PAGE, 14);
    char *now = MUST(sbrk(2 * PAGE));
    want_zero("what is new", (char *)(((uintptr_t)now + PAGE - 1) & ~(PAGE - 1)), PAGE);
    MUST(sbrk(-2 * (long)PAGE));
}
static void mutate(void) {
    MUST(sbrk(100 * PAGE));
    fill(start, 8 * PAGE, 15);
    MUST(sbrk(-130 * (long)PAGE));
}
