/* A working directory that was removed after the checkpoint is back, and the process is in it. */
#include "probe.h"

static agent a;
static long work(int cmd) {
    if (cmd == 's') MUST(mkdir("here", 0755)), MUST(chdir("here")), write_file("f", "abc", 3);
    if (cmd == 'c') want_file("f", "abc", 3), write_file("g", "x", 1);
    if (cmd == 'm') MUST(unlink("f")), MUST(rmdir("../here"));
    return 0;
}
static void setup(void) { a = agent_fork(work), ask(&a, 's'); }
static void check(void) {
    ask(&a, 'c');
    want_file("here/g", "x", 1);
}
static void mutate(void) { unlink("here/g"), ask(&a, 'm'); }
