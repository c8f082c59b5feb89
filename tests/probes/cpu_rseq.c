/* The registration of restartable sequences: the kernel knows the same area, and keeps it up to date. */
#include "probe.h"
#include <sys/auxv.h>

#define SIGNATURE 0x53053053U /* glibc's on x86 */

extern const ptrdiff_t __rseq_offset __attribute__((weak));
extern const unsigned int __rseq_size __attribute__((weak));

/* Since Linux 6.3 the length must be what was registered; glibc 2.35-2.39 registers 32. */
static uint8_t *area(void) {
    return (uint8_t *)__builtin_thread_pointer() + __rseq_offset;
}
static uint32_t word(int i) { return ((volatile uint32_t *)area())[i]; }

static long work(int cmd) {
    switch (cmd) {
    case 'c': {
        long r = syscall(SYS_rseq, area(), 32, 0, SIGNATURE);
        int e = errno;
        CHECK(r == -1 && e == EBUSY, "registering again gives %ld, %s, not EBUSY", r, strerror(e));
        cpu_set_t old, one;
        MUST(sched_getaffinity(0, sizeof old, &old));
        for (int c = 0; c < CPU_SETSIZE; c++) {
            if (!CPU_ISSET(c, &old)) continue;
            CPU_ZERO(&one);
            CPU_SET(c, &one);
            MUST(sched_setaffinity(0, sizeof one, &one));
            CHECK((int)word(1) == c, "running on processor %d, but the area says %d", c, (int)word(1));
        }
        MUST(sched_setaffinity(0, sizeof old, &old));
        break;
    }
    case 'm': TRY(syscall(SYS_rseq, area(), 32, 1, SIGNATURE)); break;
    }
    return 0;
}
static agent a;
static void setup(void) {
    if (!&__rseq_size || !__rseq_size) skip("this libc registers no rseq area");
    agent_thread(&a, work);
    work('c'), ask(&a, 'c');
}
static void check(void) { work('c'), ask(&a, 'c'); }
static void mutate(void) { work('m'), ask(&a, 'm'); }
