/* A process that starts and joins threads all the time. */
#include "run.h"

static void *body(void *p) { return (void *)((long)p * 3); }
static void round_of(int i) {
    pthread_t t[4];
    for (long k = 0; k < 4; k++) GOOD(pthread_create(&t[k], NULL, body, (void *)(k + i)) == 0);
    for (long k = 0; k < 4; k++) {
        void *r;
        GOOD(pthread_join(t[k], &r) == 0 && (long)r == (k + i) * 3);
    }
}
static void setup(void) { run_as_threads(2); }
