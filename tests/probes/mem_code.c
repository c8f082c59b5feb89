/* Code made at run time: written, made executable, run; rewritten since. */
#include "probe.h"

static unsigned char *p;
static void emit(int v) {
    unsigned char code[] = {0xb8, v, 0, 0, 0, 0xc3}; /* mov eax, v; ret */
    MUST(mprotect(p, PAGE, PROT_READ | PROT_WRITE));
    memcpy(p, code, sizeof code);
    MUST(mprotect(p, PAGE, PROT_READ | PROT_EXEC));
}
static int call(void) { return ((int (*)(void))(void *)p)(); }
static void setup(void) { p = map_anon(PAGE), emit(42); }
static void check(void) { EQ(call(), 42); }
static void mutate(void) { emit(43); }
