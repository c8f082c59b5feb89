/* A process has the threads it had, with the same thread ids, no more and no fewer. */
#include "probe.h"

static agent a[10];
static pid_t tids[8];

static long work(int cmd) {
    if (cmd == 'x') pthread_exit(NULL);
    return syscall(SYS_gettid);
}
static int count(void) {
    int n = 0;
    DIR *d = opendir("/proc/self/task");
    while (readdir(d)) n++;
    closedir(d);
    return n - 2;
}
static void setup(void) {
    for (int i = 0; i < 8; i++) agent_thread(&a[i], work), tids[i] = a[i].pid;
}
static void check(void) {
    EQ(count(), 9);
    for (int i = 0; i < 8; i++) EQ(ask(&a[i], 't'), tids[i]);
}
static void mutate(void) {
    for (int i = 0; i < 8; i += 2) {
        tell(&a[i], 'x');
        ZERO(pthread_join(a[i].thread, NULL));
    }
    agent_thread(&a[8], work), agent_thread(&a[9], work);
}
