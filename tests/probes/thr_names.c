/* The name of each thread. */
#include "probe.h"

static agent a[4];
static long work(int cmd) {
    (void)cmd;
    return 0;
}
static void name(int i, const char *fmt) {
    char n[16];
    snprintf(n, sizeof n, fmt, i);
    ZERO(pthread_setname_np(a[i].thread, n));
}
static void setup(void) {
    for (int i = 0; i < 4; i++) agent_thread(&a[i], work), name(i, "worker %d ()");
    MUST(prctl(PR_SET_NAME, "the leader"));
}
static void check(void) {
    char got[16], want[16];
    for (int i = 0; i < 4; i++) {
        snprintf(want, sizeof want, "worker %d ()", i);
        ZERO(pthread_getname_np(a[i].thread, got, sizeof got));
        CHECK(!strcmp(got, want), "thread %d is called '%s'", i, got);
    }
    MUST(prctl(PR_GET_NAME, got));
    CHECK(!strcmp(got, "the leader"), "the leader is called '%s'", got);
}
static void mutate(void) {
    for (int i = 0; i < 4; i++) name(i, "other %d");
    MUST(prctl(PR_SET_NAME, "changed"));
}
