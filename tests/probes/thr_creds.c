/* Threads of one process with different credentials (the raw calls, as file servers do). */
#include "probe.h"

static agent a[2];
static long work(int cmd) {
    uid_t r, e, s;
    if (cmd == 's') MUST(syscall(SYS_setfsuid, 33)), MUST(syscall(SYS_setresgid, -1, 12, -1));
    if (cmd == 'm') MUST(syscall(SYS_setfsuid, 44)), MUST(syscall(SYS_setresgid, -1, 13, -1));
    if (cmd == 'f') return syscall(SYS_setfsuid, -1);
    if (cmd == 'g') return MUST(syscall(SYS_getresgid, &r, &e, &s)), e;
    return 0;
}
static void setup(void) {
    agent_thread(&a[0], work), agent_thread(&a[1], work);
    ask(&a[0], 's');
}
static void check(void) {
    EQ(ask(&a[0], 'f'), 33), EQ(ask(&a[0], 'g'), 12);
    EQ(ask(&a[1], 'f'), 0), EQ(ask(&a[1], 'g'), 0);
}
static void mutate(void) { ask(&a[0], 'm'), ask(&a[1], 'm'); }
