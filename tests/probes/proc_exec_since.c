/* A child that exec'd another program after the checkpoint is the old program again, with its memory. */
#include "probe.h"

static agent a;
static uint64_t own[1024];
static char exe[PATH_MAX];
static long work(int cmd) {
    char buf[PATH_MAX] = {0};
    switch (cmd) {
    case 's': fill(own, sizeof own, 4711); break;
    case 'c':
        want_fill("the memory of the child", own, sizeof own, 4711);
        MUST(readlink("/proc/self/exe", buf, sizeof buf - 1));
        CHECK(!strcmp(buf, exe), "the program is %s", buf);
        return getpid();
    case 'm': execl("/bin/sleep", "sleep", "86400", NULL);
    }
    return 0;
}
static void setup(void) {
    MUST(readlink("/proc/self/exe", exe, sizeof exe - 1));
    a = agent_fork(work);
    ask(&a, 's');
}
static void check(void) { EQ(ask(&a, 'c'), a.pid); }
static void mutate(void) {
    tell(&a, 'm');
    sleep_ms(50);
}
