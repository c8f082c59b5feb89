/* For probes that are busy while they are checkpointed: workers (threads or processes) that check themselves in
 * every round, and a mutation that ends them. */
#include "probe.h"

#define WORKERS 4
static struct run {
    volatile long rounds[WORKERS];
    volatile int stop, bad;
    char why[256];
} *run;
static int run_n;
static pthread_t run_threads[WORKERS];
static pid_t run_pids[WORKERS];

/* One round of worker i; complains by run_bad(). */
static void round_of(int i);

__attribute__((format(printf, 1, 2))) UNUSED static void run_bad(const char *fmt, ...) {
    if (run->bad) return;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(run->why, sizeof run->why, fmt, ap);
    va_end(ap);
    run->bad = 1;
}
#define GOOD(cond)                                                                                               \
    ({                                                                                                           \
        if (!(cond)) run_bad("line %d: %s (errno %d)", __LINE__, #cond, errno);                                  \
    })
static void run_loop(int i) {
    while (!run->stop) round_of(i), run->rounds[i]++;
}
UNUSED static void *run_thread(void *p) {
    run_loop((int)(long)p);
    return NULL;
}
static void run_wait(long more) {
    for (int i = 0; i < run_n; i++) {
        long before = run->rounds[i];
        CHECK(WAIT_FOR(run->rounds[i] >= before + more || run->bad, 5000), "worker %d does not go on after %ld rounds", i, before);
    }
    CHECK(!run->bad, "%s", run->why);
}
UNUSED static void run_as_threads(int n) {
    run = map_shared(PAGE);
    run_n = n;
    for (long i = 0; i < n; i++) ZERO(pthread_create(&run_threads[i], NULL, run_thread, (void *)i));
    run_wait(2);
}
UNUSED static void run_as_processes(int n) {
    run = map_shared(PAGE);
    run_n = n;
    for (int i = 0; i < n; i++) {
        run_pids[i] = fork_child();
        if (!run_pids[i]) run_loop(i), _exit(0);
    }
    run_wait(2);
}
static void check(void) { run_wait(3); }
static void mutate(void) {
    run->stop = 1;
    for (int i = 0; i < run_n; i++) {
        if (!run_pids[i]) {
            pthread_join(run_threads[i], NULL);
        } else if (!WAIT_FOR(waitpid(run_pids[i], NULL, WNOHANG) != 0, 300)) { /* waits for a partner that ended */
            kill(run_pids[i], SIGKILL);
            TRY(waitpid(run_pids[i], NULL, 0));
        }
    }
}
