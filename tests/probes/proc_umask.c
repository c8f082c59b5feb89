/* The file mode mask of each process. */
#include "probe.h"

static agent a;
static long work(int cmd) {
    if (cmd == 's') umask(0027);
    if (cmd == 'm') umask(0777);
    if (cmd == 'c') {
        mode_t m = umask(0);
        umask(m);
        return m;
    }
    return 0;
}
static void setup(void) {
    a = agent_fork(work);
    ask(&a, 's');
    umask(0064);
}
static void check(void) { EQ(ask(&a, 'c'), 0027), EQ(work('c'), 0064); }
static void mutate(void) { ask(&a, 'm'), umask(0); }
