/* A process that shares the memory of another without being its thread (CLONE_VM). */
#include "probe.h"

static volatile int ping, pong;
static pid_t kid;
static int body(void *unused) {
    struct timespec t = {0, 2000000};
    while (!unused) {
        if (pong != ping) pong = ping;
        syscall(SYS_nanosleep, &t, NULL);
    }
    return 0;
}
static void setup(void) {
    char *stack = map_anon(65536);
    kid = owned_child(MUST(clone(body, stack + 65536, CLONE_VM | SIGCHLD, NULL)));
}
static void check(void) {
    EQ(syscall(SYS_kcmp, getpid(), kid, 1, 0, 0), 0); /* KCMP_VM */
    ping++;
    CHECK(WAIT_FOR(ping == pong, 2000), "the other does not see the shared memory");
}
static void mutate(void) {
    kill(kid, SIGKILL);
    TRY(waitpid(kid, NULL, 0));
}
