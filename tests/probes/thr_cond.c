/* Threads waiting on a condition variable, with and without a time limit. */
#include "probe.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
static int released;
static blocked w[3];

static long wait_forever(void) {
    pthread_mutex_lock(&lock);
    while (!released) pthread_cond_wait(&cond, &lock);
    pthread_mutex_unlock(&lock);
    return 7;
}
static long wait_limited(void) {
    struct timespec end;
    clock_gettime(CLOCK_REALTIME, &end);
    end.tv_sec += 3600;
    long r = 0;
    pthread_mutex_lock(&lock);
    while (!released && !r) r = pthread_cond_timedwait(&cond, &lock, &end);
    pthread_mutex_unlock(&lock);
    return r;
}
static void release(void) {
    pthread_mutex_lock(&lock);
    released = 1;
    pthread_cond_broadcast(&cond);
    pthread_mutex_unlock(&lock);
}
static void setup(void) {
    block_in(&w[0], wait_forever);
    block_in(&w[1], wait_forever);
    block_in(&w[2], wait_limited);
}
static void check(void) {
    for (int i = 0; i < 3; i++) want_blocked(&w[i]);
    release();
    want_return(&w[0], 7), want_return(&w[1], 7), want_return(&w[2], 0);
}
static void mutate(void) {
    release();
    for (int i = 0; i < 3; i++) pthread_join(w[i].thread, NULL);
}
