/* The GS and FS bases of each thread (FS is the thread pointer). */
#include "probe.h"
#include <asm/prctl.h>

static agent a[3];
static _Thread_local unsigned long want_gs, want_fs;

static long work(int cmd) {
    unsigned long v;
    switch (cmd) {
    case 's':
        want_gs = 0x10000000UL + syscall(SYS_gettid) * 0x1000UL;
        MUST(syscall(SYS_arch_prctl, ARCH_SET_GS, want_gs));
        MUST(syscall(SYS_arch_prctl, ARCH_GET_FS, &want_fs));
        break;
    case 'c':
        MUST(syscall(SYS_arch_prctl, ARCH_GET_GS, &v));
        CHECK(v == want_gs, "the GS base is %lx, not %lx", v, want_gs);
        MUST(syscall(SYS_arch_prctl, ARCH_GET_FS, &v));
        CHECK(v == want_fs, "the FS base is %lx, not %lx", v, want_fs);
        break;
    case 'm': MUST(syscall(SYS_arch_prctl, ARCH_SET_GS, 0x7777000UL)); break;
    }
    return 0;
}
static void setup(void) {
    for (int i = 0; i < 3; i++) agent_thread(&a[i], work), ask(&a[i], 's');
    work('s');
}
static void check(void) {
    for (int i = 0; i < 3; i++) ask(&a[i], 'c');
    work('c');
}
static void mutate(void) {
    for (int i = 0; i < 3; i++) ask(&a[i], 'm');
    work('m');
}
