/* 60 children: all die in the branch that is left, all are back with their ids and their memory. */
#include "probe.h"

#define N 60
static agent a[N];
static uint64_t own[512];
static long work(int cmd) {
    if (cmd == 's') fill(own, sizeof own, getpid());
    if (cmd == 'c') want_fill("the memory of a child", own, sizeof own, getpid());
    return getpid();
}
static void setup(void) {
    for (int i = 0; i < N; i++) a[i] = agent_fork(work), ask(&a[i], 's');
}
static void check(void) {
    for (int i = 0; i < N; i++) EQ(ask(&a[i], 'c'), a[i].pid);
}
static void mutate(void) {
    for (int i = 0; i < N; i++) kill(a[i].pid, SIGKILL);
    for (int i = 0; i < N; i++) TRY(waitpid(a[i].pid, NULL, 0));
    for (int i = 0; i < 10; i++) fork_idle();
}
