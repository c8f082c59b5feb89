/* A mutex that is held, with a thread blocked on it, and an error-checking one that knows its owner. */
#include "probe.h"

static pthread_mutex_t held = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t own = PTHREAD_ERRORCHECK_MUTEX_INITIALIZER_NP;
static blocked waiter;

static long take(void) { return pthread_mutex_lock(&held); }
static void setup(void) {
    ZERO(pthread_mutex_lock(&held));
    ZERO(pthread_mutex_lock(&own));
    block_in(&waiter, take);
}
static void check(void) {
    want_blocked(&waiter);
    EQ(pthread_mutex_lock(&own), EDEADLK);
    ZERO(pthread_mutex_unlock(&own));
    ZERO(pthread_mutex_unlock(&held));
    want_return(&waiter, 0);
    EQ(pthread_mutex_trylock(&held), EBUSY);
}
static void mutate(void) {
    TRY(pthread_mutex_unlock(&held));
    pthread_join(waiter.thread, NULL);
}
