/* clear_child_tid: threads that end after the rollback wake whoever joins them. */
#include "probe.h"

static agent a[6];
static int joined;
static long work(int cmd) {
    if (cmd == 'x') pthread_exit((void *)(long)(syscall(SYS_gettid) + 7));
    return 0;
}
static void setup(void) {
    for (int i = 0; i < 6; i++) agent_thread(&a[i], work);
}
static void join(int i) {
    void *v = NULL;
    struct timespec end;
    clock_gettime(CLOCK_REALTIME, &end);
    end.tv_sec += 3;
    tell(&a[i], 'x');
    ZERO(pthread_timedjoin_np(a[i].thread, &v, &end));
    EQ((long)v, a[i].pid + 7);
    joined++;
}
static void check(void) {
    for (int i = 0; i < 6; i++) wait_state(a[i].pid, 'S');
    for (int i = 0; i < 6; i++) join(i);
}
static void mutate(void) {
    if (joined) return; /* by the check */
    for (int i = 0; i < 3; i++) join(i);
}
