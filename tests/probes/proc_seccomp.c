/* Seccomp filters of a process's own: still there, still in force, and no others. */
#include "probe.h"
#include <linux/filter.h>
#include <linux/seccomp.h>

static agent a, b;
static void deny(int nr, int err) {
    struct sock_filter f[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | err),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog p = {4, f};
    MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    MUST(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &p));
}
static long work(int cmd) {
    if (cmd == 's') deny(SYS_sysinfo, 101), deny(SYS_times, 102);
    if (cmd == 'm') deny(SYS_getcpu, 103);
    char b[512];
    if (cmd == 'i') return syscall(SYS_sysinfo, b) < 0 ? errno : 0;
    if (cmd == 't') return syscall(SYS_times, b) < 0 ? errno : 0;
    if (cmd == 'g') return syscall(SYS_getcpu, b, b + 8, NULL) < 0 ? errno : 0;
    return 0;
}
static void setup(void) {
    a = agent_fork(work), b = agent_fork(work);
    ask(&a, 's');
}
static void check(void) {
    EQ(ask(&a, 'i'), 101), EQ(ask(&a, 't'), 102), EQ(ask(&a, 'g'), 0);
    EQ(ask(&b, 'i'), 0), EQ(ask(&b, 't'), 0), EQ(ask(&b, 'g'), 0);
}
static void mutate(void) { ask(&a, 'm'), ask(&b, 'm'); }
