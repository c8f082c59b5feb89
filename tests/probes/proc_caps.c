/* Capability sets: permitted, effective, inheritable, ambient, bounding, and the keep-capabilities flag. */
#include "probe.h"
#include <linux/capability.h>

static agent a;
static char before[5][32];
static const char *keys[5] = {"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"};
static void set(uint64_t e, uint64_t p, uint64_t i) {
    struct __user_cap_header_struct h = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct d[2] = {{e, p, i}, {e >> 32, p >> 32, i >> 32}};
    MUST(syscall(SYS_capset, &h, d));
}
static uint64_t have;
static long work(int cmd) {
    switch (cmd) {
    case 's':
        MUST(prctl(PR_CAPBSET_DROP, CAP_MKNOD));
        MUST(prctl(PR_SET_KEEPCAPS, 1));
        set(have & ~3ULL, have & ~2ULL, 1ULL << CAP_KILL);
        MUST(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_KILL, 0, 0));
        break;
    case 'k': return prctl(PR_GET_KEEPCAPS);
    case 'm':
        MUST(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0));
        MUST(prctl(PR_CAPBSET_DROP, CAP_SETUID));
        MUST(prctl(PR_SET_KEEPCAPS, 0));
        set(0, 0, 0);
        break;
    }
    return 0;
}
static void setup(void) {
    have = strtoull(status_line(getpid(), "CapPrm"), NULL, 16);
    if (!(have & (1ULL << CAP_KILL)) || !(have & (1ULL << CAP_SETPCAP))) skip("too few capabilities here");
    a = agent_fork(work);
    ask(&a, 's');
    for (int i = 0; i < 5; i++) strcpy(before[i], status_line(a.pid, keys[i]));
}
static void check(void) {
    for (int i = 0; i < 5; i++) {
        const char *now = status_line(a.pid, keys[i]);
        CHECK(!strcmp(now, before[i]), "%s is %s, not %s", keys[i], now, before[i]);
    }
    EQ(ask(&a, 'k'), 1);
}
static void mutate(void) { ask(&a, 'm'); }
