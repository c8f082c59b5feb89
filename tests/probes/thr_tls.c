/* Thread-local storage, both kinds: _Thread_local and keys. */
#include "probe.h"

static agent a[4];
static _Thread_local uint64_t own[512];
static pthread_key_t key;

static long work(int cmd) {
    long me = syscall(SYS_gettid);
    if (cmd == 's') fill(own, sizeof own, me), pthread_setspecific(key, (void *)(me * 3));
    if (cmd == 'm') fill(own, sizeof own, 0), pthread_setspecific(key, NULL);
    if (cmd == 'c') {
        want_fill("thread-local data", own, sizeof own, me);
        EQ((long)pthread_getspecific(key), me * 3);
    }
    return 0;
}
static void setup(void) {
    pthread_key_create(&key, NULL);
    for (int i = 0; i < 4; i++) agent_thread(&a[i], work), ask(&a[i], 's');
    work('s');
}
static void check(void) {
    for (int i = 0; i < 4; i++) ask(&a[i], 'c');
    work('c');
}
static void mutate(void) {
    for (int i = 0; i < 4; i++) ask(&a[i], 'm');
    work('m');
}
