/* Scheduling of each thread: policy, nice value, affinity, timer slack. */
#include "probe.h"

static agent a[2];
static int policy0, nice0;
static int last_cpu(void) {
    cpu_set_t s;
    MUST(sched_getaffinity(0, sizeof s, &s));
    int c = -1;
    for (int i = 0; i < CPU_SETSIZE; i++)
        if (CPU_ISSET(i, &s)) c = i;
    return c;
}
static long work(int cmd) {
    struct sched_param sp = {0};
    cpu_set_t s;
    switch (cmd) {
    case 's':
        MUST(sched_setscheduler(0, SCHED_BATCH, &sp));
        errno = 0;
        MUST(setpriority(PRIO_PROCESS, gettid(), 7));
        MUST(prctl(PR_SET_TIMERSLACK, 123456UL));
        CPU_ZERO(&s);
        CPU_SET(0, &s);
        TRY(sched_setaffinity(0, sizeof s, &s));
        break;
    case 'c':
        EQ(sched_getscheduler(0), SCHED_BATCH);
        EQ(getpriority(PRIO_PROCESS, gettid()), 7);
        EQ(prctl(PR_GET_TIMERSLACK), 123456);
        MUST(sched_getaffinity(0, sizeof s, &s));
        EQ(CPU_COUNT(&s), 1);
        break;
    case 'm':
        MUST(sched_setscheduler(0, SCHED_IDLE, &sp));
        MUST(setpriority(PRIO_PROCESS, gettid(), 15));
        MUST(prctl(PR_SET_TIMERSLACK, 999UL));
        for (int i = 0; i < CPU_SETSIZE; i++) CPU_SET(i, &s);
        MUST(sched_setaffinity(0, sizeof s, &s));
        break;
    }
    return 0;
}
static void setup(void) {
    if (last_cpu() < 0) skip("no processor to run on");
    policy0 = sched_getscheduler(0), nice0 = getpriority(PRIO_PROCESS, 0);
    for (int i = 0; i < 2; i++) agent_thread(&a[i], work);
    ask(&a[0], 's');
}
static void check(void) {
    ask(&a[0], 'c');
    EQ(sched_getscheduler(a[1].pid), policy0);
    EQ(getpriority(PRIO_PROCESS, a[1].pid), nice0);
}
static void mutate(void) { ask(&a[0], 'm'), ask(&a[1], 'm'); }
