/* Threads that fight for a mutex, a condition variable and a read-write lock. */
#include "run.h"

static pthread_mutex_t m = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t full = PTHREAD_COND_INITIALIZER, empty = PTHREAD_COND_INITIALIZER;
static pthread_rwlock_t rw = PTHREAD_RWLOCK_INITIALIZER;
static int items;
static long made, taken, pair[2];
static void round_of(int i) {
    pthread_mutex_lock(&m);
    if (i % 2) {
        while (items == 0 && !run->stop) pthread_cond_wait(&full, &m);
        if (items) items--, taken++;
        pthread_cond_signal(&empty);
    } else {
        while (items == 5 && !run->stop) pthread_cond_wait(&empty, &m);
        items++, made++;
        pthread_cond_signal(&full);
    }
    GOOD(made - taken == items && items >= 0 && items <= 7);
    if (run->stop) pthread_cond_broadcast(&full), pthread_cond_broadcast(&empty);
    pthread_mutex_unlock(&m);
    if (i == 0) {
        pthread_rwlock_wrlock(&rw);
        pair[0]++, pair[1]--;
        pthread_rwlock_unlock(&rw);
    } else {
        pthread_rwlock_rdlock(&rw);
        GOOD(pair[0] + pair[1] == 0);
        pthread_rwlock_unlock(&rw);
    }
}
static void setup(void) { run_as_threads(4); }
