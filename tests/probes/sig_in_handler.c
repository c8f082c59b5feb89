/* A thread caught inside two nested signal handlers, on the alternate stack, with the masks they imply. */
#include "probe.h"

static int gate[2];
static volatile int depth, after;
static volatile pid_t tid;
static volatile double number;
static pthread_t thread;

static void inner(int s) {
    char c;
    (void)s;
    depth = 2;
    while (read(gate[0], &c, 1) < 0) {
    }
}
static void outer(int s) {
    (void)s;
    depth = 1;
    raise(SIGUSR2);
    depth = 3;
}
static void *run(void *unused) {
    (void)unused;
    stack_t st = {.ss_sp = map_anon(65536), .ss_size = 65536};
    sigaltstack(&st, NULL);
    tid = gettid();
    double d = number;
    raise(SIGUSR1);
    sigset_t m;
    pthread_sigmask(SIG_SETMASK, NULL, &m);
    after = d * 2 == 6.5 && !sigismember(&m, SIGUSR1) && !sigismember(&m, SIGUSR2) ? 1 : -1;
    return NULL;
}
static void setup(void) {
    number = 3.25;
    MUST(pipe(gate));
    struct sigaction a = {.sa_handler = outer, .sa_flags = SA_ONSTACK};
    sigaction(SIGUSR1, &a, NULL);
    struct sigaction b = {.sa_handler = inner, .sa_flags = SA_ONSTACK};
    sigaddset(&b.sa_mask, SIGTERM);
    sigaction(SIGUSR2, &b, NULL);
    ZERO(pthread_create(&thread, NULL, run, NULL));
    CHECK(WAIT_FOR(depth == 2, 2000), "the handlers did not run");
    wait_state(tid, 'S');
}
static void check(void) {
    EQ(depth, 2);
    char path[64], line[256];
    snprintf(path, sizeof path, "/proc/self/task/%d/status", tid);
    FILE *f = fopen(path, "re");
    CHECK(f, "no %s", path);
    unsigned long blk = 0;
    while (fgets(line, sizeof line, f)) sscanf(line, "SigBlk: %lx", &blk);
    fclose(f);
    EQ(blk, (1UL << (SIGUSR1 - 1)) | (1UL << (SIGUSR2 - 1)) | (1UL << (SIGTERM - 1)));
    EQ(write(gate[1], "x", 1), 1);
    ZERO(pthread_join(thread, NULL));
    EQ(depth, 3), EQ(after, 1);
}
static void mutate(void) {
    TRY(write(gate[1], "x", 1));
    pthread_join(thread, NULL);
}
