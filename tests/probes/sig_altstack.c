/* The alternate signal stack: where it is, and that handlers run on it. */
#include "probe.h"

static char *stack;
static volatile uintptr_t where;
static void h(int s) {
    (void)s;
    where = (uintptr_t)__builtin_frame_address(0);
}
static void setup(void) {
    stack = map_anon(64 * 1024);
    stack_t st = {.ss_sp = stack, .ss_size = 64 * 1024};
    MUST(sigaltstack(&st, NULL));
    struct sigaction a = {.sa_handler = h, .sa_flags = SA_ONSTACK};
    MUST(sigaction(SIGUSR1, &a, NULL));
}
static void check(void) {
    stack_t st;
    MUST(sigaltstack(NULL, &st));
    CHECK(st.ss_sp == stack && st.ss_size == 64 * 1024 && st.ss_flags == 0, "it is at %p, %zu bytes, flags %x", st.ss_sp, st.ss_size, st.ss_flags);
    raise(SIGUSR1);
    CHECK(where > (uintptr_t)stack && where < (uintptr_t)stack + 64 * 1024, "the handler ran at %p, not on the alternate stack", (void *)where);
}
static void mutate(void) {
    stack_t st = {.ss_sp = map_anon(128 * 1024), .ss_size = 128 * 1024};
    MUST(sigaltstack(&st, NULL));
}
