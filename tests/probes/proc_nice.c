/* Nice value, policy, I/O priority and affinity of a process. */
#include "probe.h"

#define IO_BE4 ((2 << 13) | 6)
static agent a;
static long work(int cmd) {
    switch (cmd) {
    case 's': MUST(setpriority(PRIO_PROCESS, 0, 5)), MUST(syscall(SYS_ioprio_set, 1, 0, IO_BE4)); break;
    case 'c': EQ(getpriority(PRIO_PROCESS, 0), 5), EQ(syscall(SYS_ioprio_get, 1, 0), IO_BE4); break;
    case 'm': MUST(setpriority(PRIO_PROCESS, 0, 17)), MUST(syscall(SYS_ioprio_set, 1, 0, (3 << 13))); break;
    }
    return 0;
}
static void setup(void) { a = agent_fork(work), ask(&a, 's'); }
static void check(void) { ask(&a, 'c'), EQ(getpriority(PRIO_PROCESS, a.pid), 5); }
static void mutate(void) { ask(&a, 'm'); }
