/* The blocked signals of a process, real-time ones too, and of a child that inherited and changed them. */
#include "probe.h"

static sigset_t want;
static agent a;
static void set(uint64_t bits) { MUST(syscall(SYS_rt_sigprocmask, SIG_SETMASK, &bits, NULL, 8)); }
static uint64_t get(void) {
    uint64_t b;
    MUST(syscall(SYS_rt_sigprocmask, SIG_SETMASK, NULL, &b, 8));
    return b;
}
static long work(int cmd) {
    if (cmd == 'm') set(0);
    if (cmd == 's') set(0xf000000000004202ULL);
    if (cmd == 'c') CHECK(get() == 0xf000000000004202ULL, "the mask is %lx", (long)get());
    return 0;
}
static void setup(void) {
    (void)want;
    a = agent_fork(work);
    ask(&a, 's');
    set(0xa5a5000000000201ULL);
}
static void check(void) {
    ask(&a, 'c');
    CHECK(get() == 0xa5a5000000000201ULL, "the mask is %lx", (long)get());
}
static void mutate(void) {
    ask(&a, 'm');
    set(0x3000000000ULL);
}
