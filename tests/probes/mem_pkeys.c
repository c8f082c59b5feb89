/* Memory protection keys: which are in use, on which pages, and what each thread may do. */
#include "probe.h"

static int key;
static char *p;
static sigjmp_buf out;
static void segv(int s, siginfo_t *i, void *c) { (void)s, (void)c, siglongjmp(out, i->si_code); }
static int touch(char *at) {
    int r = sigsetjmp(out, 1);
    if (!r) (void)*(volatile char *)at;
    return r;
}
static void setup(void) {
    key = pkey_alloc(0, 0);
    if (key < 0) skip("no protection keys here");
    p = map_anon(2 * PAGE);
    fill(p, 2 * PAGE, 2);
    MUST(pkey_mprotect(p, PAGE, PROT_READ | PROT_WRITE, key));
    MUST(pkey_set(key, PKEY_DISABLE_ACCESS));
    struct sigaction a = {.sa_sigaction = segv, .sa_flags = SA_SIGINFO};
    MUST(sigaction(SIGSEGV, &a, NULL));
}
static void check(void) {
    EQ(pkey_get(key), PKEY_DISABLE_ACCESS);
    EQ(touch(p), SEGV_PKUERR), EQ(touch(p + PAGE), 0);
    MUST(pkey_set(key, 0));
    want_fill("the memory", p, 2 * PAGE, 2);
    int k = MUST(pkey_alloc(0, 0));
    CHECK(k != key, "key %d was given twice", k);
    MUST(pkey_free(k));
}
static void mutate(void) {
    MUST(pkey_set(key, 0));
    MUST(pkey_mprotect(p, PAGE, PROT_READ | PROT_WRITE, 0));
    MUST(pkey_free(key));
}
