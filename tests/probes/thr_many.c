/* 100 threads, each with data of its own; some are replaced. */
#include "probe.h"

#define N 100
static agent a[N];
static _Thread_local uint64_t mine[64];

static long work(int cmd) {
    uint64_t seed = syscall(SYS_gettid);
    if (cmd == 's') fill(mine, sizeof mine, seed);
    if (cmd == 'c') want_fill("the data of a thread", mine, sizeof mine, seed);
    if (cmd == 'm') fill(mine, sizeof mine, 1);
    if (cmd == 'x') pthread_exit(NULL);
    return 0;
}
static void setup(void) {
    for (int i = 0; i < N; i++) agent_thread(&a[i], work), ask(&a[i], 's');
}
static void check(void) {
    for (int i = 0; i < N; i++) ask(&a[i], 'c');
}
static void mutate(void) {
    for (int i = 0; i < N; i++) {
        if (i % 3) {
            ask(&a[i], 'm');
        } else {
            tell(&a[i], 'x');
            ZERO(pthread_join(a[i].thread, NULL));
            agent_thread(&a[i], work);
        }
    }
}
