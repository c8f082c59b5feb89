/* A mapping that grows downwards, as thread stacks of some runtimes do. */
#include "probe.h"

static char *p;
static void setup(void) {
    char *room = map_anon(4 << 20);
    MUST(munmap(room, 4 << 20));
    p = MUST(mmap(room + (3 << 20), 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED_NOREPLACE, -1, 0));
    fill(p, 2 * PAGE, 1);
    for (int i = 1; i <= 10; i++) fill(p - i * PAGE, PAGE, 100 + i);
}
static void check(void) {
    want_fill("the first part", p, 2 * PAGE, 1);
    for (int i = 1; i <= 10; i++) want_fill("a grown page", p - i * PAGE, PAGE, 100 + i);
    for (int i = 11; i <= 20; i++) *(volatile char *)(p - i * PAGE) = 1; /* grows on */
}
static void mutate(void) {
    for (int i = 11; i <= 40; i++) fill(p - i * PAGE, PAGE, 7);
    memset(p - 3 * PAGE, 9, PAGE);
}
