/* What libc remembers about identity is what the kernel says: process id, thread id, raise(), recursive locks. */
#include "probe.h"

static agent a;
static _Thread_local pid_t tid;
static pid_t pid;
static pthread_mutex_t rec = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
static volatile sig_atomic_t hits;
static char self_link[32];

static void hit(int s) { (void)s, hits++; }
static long work(int cmd) {
    if (cmd == 's') tid = gettid(), ZERO(pthread_mutex_lock(&rec)), ZERO(pthread_mutex_lock(&rec));
    if (cmd == 'c') {
        EQ(gettid(), tid), EQ(syscall(SYS_gettid), tid), EQ(getpid(), pid), EQ(syscall(SYS_getpid), pid);
        ZERO(pthread_mutex_lock(&rec)), ZERO(pthread_mutex_unlock(&rec));
        hits = 0;
        raise(SIGUSR1);
        EQ(hits, 1);
    }
    if (cmd == 'm') pthread_mutex_unlock(&rec), pthread_mutex_unlock(&rec), tid = -1;
    return 0;
}
static void setup(void) {
    pid = getpid();
    signal(SIGUSR1, hit);
    agent_thread(&a, work);
    ask(&a, 's');
    snprintf(self_link, sizeof self_link, "%d", pid);
}
static void check(void) {
    char l[32] = {0};
    MUST(readlink("/proc/self", l, sizeof l - 1));
    CHECK(!strcmp(l, self_link), "/proc/self is %s, not %s", l, self_link);
    EQ(pthread_mutex_trylock(&rec), EBUSY);
    ask(&a, 'c');
}
static void mutate(void) { ask(&a, 'm'); }
