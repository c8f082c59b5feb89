/* Zombies keep their id, their status and how they died, until they are waited for. */
#include "probe.h"

static pid_t ended, killed, aborted;
static void setup(void) {
    struct rlimit no_core = {0, 0};
    setrlimit(RLIMIT_CORE, &no_core);
    ended = fork_child();
    if (!ended) _exit(123);
    killed = fork_idle();
    kill(killed, SIGUSR1);
    aborted = fork_child();
    if (!aborted) abort();
    wait_state(ended, 'Z'), wait_state(killed, 'Z'), wait_state(aborted, 'Z');
}
static void check(void) {
    int st;
    EQ(task_state(ended), 'Z');
    EQ(waitpid(ended, &st, WNOHANG), ended);
    CHECK(WIFEXITED(st) && WEXITSTATUS(st) == 123, "the status of the one that ended is %x", st);
    EQ(waitpid(killed, &st, WNOHANG), killed);
    CHECK(WIFSIGNALED(st) && WTERMSIG(st) == SIGUSR1, "the status of the one that was killed is %x", st);
    EQ(waitpid(aborted, &st, WNOHANG), aborted);
    CHECK(WIFSIGNALED(st) && WTERMSIG(st) == SIGABRT, "the status of the one that aborted is %x", st);
    EQ(waitpid(-1, &st, WNOHANG), -1);
}
static void mutate(void) {
    TRY(waitpid(ended, NULL, 0));
    TRY(waitpid(killed, NULL, 0));
    fork_idle();
}
