/* The time functions that never enter the kernel work, and give the same time as the kernel. */
#include "probe.h"
#include <sys/auxv.h>

static unsigned long vdso;
static void setup(void) { vdso = getauxval(AT_SYSINFO_EHDR); }
static void check(void) {
    EQ(getauxval(AT_SYSINFO_EHDR), vdso);
    CHECK(!memcmp((void *)vdso, "\177ELF", 4), "there is no vdso at %lx", vdso);
    static const clockid_t clocks[] = {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_MONOTONIC_RAW};
    for (int i = 0; i < 4; i++) {
        struct timespec a, b, c;
        clock_gettime(clocks[i], &a);
        MUST(syscall(SYS_clock_gettime, clocks[i], &b));
        clock_gettime(clocks[i], &c);
        int64_t x = a.tv_sec * 1000000000LL + a.tv_nsec, y = b.tv_sec * 1000000000LL + b.tv_nsec, z = c.tv_sec * 1000000000LL + c.tv_nsec;
        CHECK(x <= y && y <= z, "clock %d: %lld %lld %lld", clocks[i], (long long)x, (long long)y, (long long)z);
    }
}
static void mutate(void) { noop("a program cannot change the vdso"); }
