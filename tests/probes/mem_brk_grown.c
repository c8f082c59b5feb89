/* The end of the data segment after it was raised since: new memory below the raised end is really there. */
#include "probe.h"

static char *start;
static void setup(void) {
    start = MUST(sbrk(4 * PAGE));
    fill((char *)(((uintptr_t)start + 7) & ~7UL), PAGE, 6);
}
static void check(void) {
    want_fill("the data", (char *)(((uintptr_t)start + 7) & ~7UL), PAGE, 6);
    char *now = MUST(sbrk(10 * PAGE));
    CHECK((uintptr_t)now == (uintptr_t)start + 4 * PAGE, "the break is at %p, not %p", now, start + 4 * PAGE);
    unsigned char v;
    char *page = (char *)(((uintptr_t)now + PAGE - 1) & ~(PAGE - 1));
    for (int i = 0; i < 9; i++) CHECK(mincore(page + i * PAGE, PAGE, &v) == 0, "page %d of the new memory is not mapped", i);
    memset(now, 1, 10 * PAGE);
}
static void mutate(void) {
    char *p = MUST(sbrk(100 * PAGE));
    memset(p, 2, 100 * PAGE);
    fill((char *)(((uintptr_t)start + 7) & ~7UL), PAGE, 7);
}
