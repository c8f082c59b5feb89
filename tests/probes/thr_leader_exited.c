/* A process whose first thread has ended while others go on. */
#include "probe.h"

static agent a;
static pid_t tid;
static int up[2], down[2];

static void *second(void *unused) {
    (void)unused;
    pid_t me = gettid();
    char c;
    if (write(up[1], &me, sizeof me) < 0) return NULL;
    while (read(down[0], &c, 1) == 1) {
        if (c == 'x') _exit(9);
        me = gettid();
        if (write(up[1], &me, sizeof me) < 0) return NULL;
    }
    return NULL;
}
static void setup(void) {
    MUST(pipe(up)), MUST(pipe(down));
    a.pid = fork_child();
    if (!a.pid) {
        pthread_t t;
        pthread_create(&t, NULL, second, NULL);
        pthread_exit(NULL);
    }
    EQ(read(up[0], &tid, sizeof tid), sizeof tid);
    wait_state(a.pid, 'Z');
}
static void check(void) {
    EQ(task_state(a.pid), 'Z');
    pid_t again = 0;
    int st;
    EQ(waitpid(a.pid, &st, WNOHANG), 0); /* not to be waited for while a thread lives */
    EQ(write(down[1], "t", 1), 1);
    CHECK(readable(up[0], 2000), "the second thread does not answer");
    EQ(read(up[0], &again, sizeof again), sizeof again);
    EQ(again, tid);
}
static void mutate(void) {
    TRY(write(down[1], "x", 1));
    TRY(waitpid(a.pid, NULL, 0));
}
