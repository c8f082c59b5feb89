/* POSIX semaphores (a count, and a waiter) and a barrier with all but one arrived. */
#include "probe.h"
#include <semaphore.h>

static sem_t counted, empty;
static pthread_barrier_t barrier;
static blocked w[3];

static long wait_sem(void) { return sem_wait(&empty); }
static long wait_barrier(void) {
    long r = pthread_barrier_wait(&barrier);
    return r == PTHREAD_BARRIER_SERIAL_THREAD ? 0 : r;
}
static void setup(void) {
    sem_init(&counted, 0, 5), sem_init(&empty, 0, 0);
    pthread_barrier_init(&barrier, NULL, 3);
    block_in(&w[0], wait_sem), block_in(&w[1], wait_barrier), block_in(&w[2], wait_barrier);
}
static void check(void) {
    int v;
    for (int i = 0; i < 3; i++) want_blocked(&w[i]);
    sem_getvalue(&counted, &v);
    EQ(v, 5);
    sem_post(&empty);
    wait_barrier();
    for (int i = 0; i < 3; i++) want_return(&w[i], 0);
}
static void mutate(void) {
    sem_wait(&counted);
    if (w[0].done) return; /* the check has released them */
    sem_post(&empty);
    wait_barrier();
    for (int i = 0; i < 3; i++) pthread_join(w[i].thread, NULL);
}
