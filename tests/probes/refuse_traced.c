/* A process that is being traced by another of the sandbox. */
#include "probe.h"
#include <sys/ptrace.h>

static agent a;
static long work(int cmd) { return cmd; }
static void setup(void) {
    a = agent_fork(work);
    if (ptrace(PTRACE_SEIZE, a.pid, 0, 0) < 0) skip("tracing is not allowed here");
}
static void check(void) {
    EQ(atoi(status_line(a.pid, "TracerPid")), getpid());
    EQ(ask(&a, 'x'), 'x');
    MUST(ptrace(PTRACE_INTERRUPT, a.pid, 0, 0)); /* still ours to command */
    int st;
    EQ(waitpid(a.pid, &st, __WALL), a.pid);
    CHECK(WIFSTOPPED(st) && st >> 16 == PTRACE_EVENT_STOP, "it stops with %x", st);
    MUST(ptrace(PTRACE_CONT, a.pid, 0, 0));
    EQ(ask(&a, 'y'), 'y');
}
static void mutate(void) {
    kill(a.pid, SIGKILL);
    TRY(waitpid(a.pid, NULL, __WALL));
}
