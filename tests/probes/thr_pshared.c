/* A mutex and a condition variable shared by processes: futex waits across address spaces. */
#include "probe.h"

static struct shared {
    pthread_mutex_t lock;
    pthread_cond_t cond;
    int go, woken, waiting;
} *s;
static pid_t kids[3];

static void setup(void) {
    s = map_shared(PAGE);
    pthread_mutexattr_t ma;
    pthread_condattr_t ca;
    pthread_mutexattr_init(&ma), pthread_mutexattr_setpshared(&ma, PTHREAD_PROCESS_SHARED);
    pthread_condattr_init(&ca), pthread_condattr_setpshared(&ca, PTHREAD_PROCESS_SHARED);
    pthread_mutex_init(&s->lock, &ma), pthread_cond_init(&s->cond, &ca);
    for (int i = 0; i < 3; i++) {
        kids[i] = fork_child();
        if (!kids[i]) {
            pthread_mutex_lock(&s->lock);
            s->waiting++;
            while (!s->go) pthread_cond_wait(&s->cond, &s->lock);
            s->woken++;
            pthread_mutex_unlock(&s->lock);
            _exit(40 + i);
        }
    }
    CHECK(WAIT_FOR(s->waiting == 3, 2000), "the children do not wait");
    for (int i = 0; i < 3; i++) wait_state(kids[i], 'S');
}
static void release(void) {
    pthread_mutex_lock(&s->lock);
    s->go = 1;
    pthread_cond_broadcast(&s->cond);
    pthread_mutex_unlock(&s->lock);
}
static void check(void) {
    EQ(s->woken, 0);
    release();
    for (int i = 0; i < 3; i++) {
        int st = 0;
        CHECK(WAIT_FOR(waitpid(kids[i], &st, WNOHANG) == kids[i], 3000), "child %d was not woken", kids[i]);
        CHECK(WIFEXITED(st) && WEXITSTATUS(st) == 40 + i, "child %d ended with %x", kids[i], st);
    }
    EQ(s->woken, 3);
}
static void mutate(void) {
    release();
    for (int i = 0; i < 3; i++) TRY(waitpid(kids[i], NULL, 0));
}
