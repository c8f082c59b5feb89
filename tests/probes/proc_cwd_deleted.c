/* A working directory that was removed. */
#include "probe.h"

static agent a;
static long work(int cmd) {
    char buf[PATH_MAX];
    struct stat st;
    if (cmd == 's') MUST(mkdir("gone", 0755)), MUST(chdir("gone")), MUST(rmdir("../gone"));
    if (cmd == 'c') {
        long r = syscall(SYS_getcwd, buf, sizeof buf);
        CHECK(r == -1 && errno == ENOENT, "getcwd gives %ld", r);
        MUST(stat(".", &st));
        EQ(open("x", O_CREAT | O_WRONLY, 0644), -1);
        EQ(errno, ENOENT);
    }
    if (cmd == 'm') MUST(chdir("/"));
    return 0;
}
static void setup(void) { a = agent_fork(work), ask(&a, 's'); }
static void check(void) {
    ask(&a, 'c');
    EQ(access("gone", F_OK), -1);
}
static void mutate(void) {
    ask(&a, 'm');
    TRY(mkdir("gone", 0755));
}
