/* Pages without access: touching them still faults, and what is around them is there. */
#include "probe.h"

static char *p;
static sigjmp_buf out;
static void *volatile where;
static void segv(int s, siginfo_t *i, void *c) {
    (void)s, (void)c;
    where = i->si_addr;
    siglongjmp(out, i->si_code);
}
static int touch(char *at, int write) {
    where = NULL;
    int r = sigsetjmp(out, 1);
    if (r) return r;
    if (write) *(volatile char *)at = 1;
    else (void)*(volatile char *)at;
    return 0;
}
static void setup(void) {
    p = map_anon(16 * PAGE);
    fill(p, 16 * PAGE, 61);
    MUST(mprotect(p + 4 * PAGE, PAGE, PROT_NONE));
    MUST(munmap(p + 8 * PAGE, PAGE));
    MUST(mprotect(p + 12 * PAGE, PAGE, PROT_READ));
    struct sigaction a = {.sa_sigaction = segv, .sa_flags = SA_SIGINFO};
    MUST(sigaction(SIGSEGV, &a, NULL));
}
static void check(void) {
    EQ(touch(p + 4 * PAGE + 5, 0), SEGV_ACCERR);
    CHECK(where == p + 4 * PAGE + 5, "the fault is at %p", where);
    EQ(touch(p + 8 * PAGE, 0), SEGV_MAPERR);
    EQ(touch(p + 12 * PAGE, 1), SEGV_ACCERR), EQ(touch(p + 12 * PAGE, 0), 0);
    want_fill("before the guard", p, 4 * PAGE, 61);
    want_fill("after the guard", p + 5 * PAGE, 3 * PAGE, 61 + 5 * PAGE / 8);
    want_fill("the read-only page", p + 12 * PAGE, PAGE, 61 + 12 * PAGE / 8);
    MUST(mprotect(p + 4 * PAGE, PAGE, PROT_READ));
    want_fill("under the guard", p + 4 * PAGE, PAGE, 61 + 4 * PAGE / 8);
}
static void mutate(void) {
    MUST(mprotect(p, 8 * PAGE, PROT_READ | PROT_WRITE));
    MUST(mmap(p + 8 * PAGE, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
}
