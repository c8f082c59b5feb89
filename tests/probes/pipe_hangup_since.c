/* A pipe whose writer (another process) died since: it is open again, and nothing has been lost. */
#include "probe.h"

static int p[2];
static agent a;
static long work(int cmd) {
    if (cmd == 'w') EQ(write(p[1], "from the child", 14), 14);
    return 0;
}
static void setup(void) {
    MUST(pipe2(p, O_CLOEXEC));
    a = agent_fork(work);
    close(p[1]);
}
static void check(void) {
    EQ(readable(p[0], 20), 0);
    ask(&a, 'w');
    want_data(p[0], "from the child", 14);
}
static void mutate(void) {
    kill(a.pid, SIGKILL);
    TRY(waitpid(a.pid, NULL, 0));
    char c;
    TRY(read(p[0], &c, 1));
}
