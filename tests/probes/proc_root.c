/* A process in a root of its own. */
#include "probe.h"

static agent a;
static long work(int cmd) {
    if (cmd == 's') {
        if (chroot("cage") < 0) return errno;
        MUST(chdir("/"));
    }
    if (cmd == 'c') want_file("/mark", "caged", 5), EQ(access("/proc", F_OK), -1);
    if (cmd == 'm') MUST(chroot("/deeper"));
    return 0;
}
static void setup(void) {
    MUST(mkdir("cage", 0755)), MUST(mkdir("cage/deeper", 0755));
    write_file("cage/mark", "caged", 5);
    a = agent_fork(work);
    if (ask(&a, 's')) skip("chroot is not allowed here");
}
static void check(void) { ask(&a, 'c'); }
static void mutate(void) { ask(&a, 'm'); }
