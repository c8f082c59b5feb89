/* The robust futex list of a thread: its owner's death is told to the next one who locks. */
#include "probe.h"

static agent a;
static pthread_mutex_t lock;
static void *head;
static size_t head_len;

static long work(int cmd) {
    if (cmd == 's') {
        ZERO(pthread_mutex_lock(&lock));
        MUST(syscall(SYS_get_robust_list, 0, &head, &head_len));
    }
    if (cmd == 'm') ZERO(pthread_mutex_unlock(&lock));
    if (cmd == 'x') pthread_exit(NULL);
    return 0;
}
static void setup(void) {
    pthread_mutexattr_t at;
    pthread_mutexattr_init(&at);
    pthread_mutexattr_setrobust(&at, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(&lock, &at);
    agent_thread(&a, work);
    ask(&a, 's');
}
static void check(void) {
    void *h;
    size_t n;
    MUST(syscall(SYS_get_robust_list, a.pid, &h, &n));
    CHECK(h == head && n == head_len, "the robust list is at %p, not %p", h, head);
    EQ(pthread_mutex_trylock(&lock), EBUSY);
    tell(&a, 'x');
    ZERO(pthread_join(a.thread, NULL));
    EQ(pthread_mutex_trylock(&lock), EOWNERDEAD);
}
static void mutate(void) {
    ask(&a, 'm');
    struct {
        void *p[3];
    } *other = calloc(1, 24);
    other->p[0] = other;
    MUST(syscall(SYS_set_robust_list, other, 24));
}
