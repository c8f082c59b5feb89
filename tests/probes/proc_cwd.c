/* The working directory of each process. */
#include "probe.h"

static agent a, b;
static long work(int cmd) {
    struct stat st;
    if (cmd == '1') MUST(chdir("one"));
    if (cmd == '2') MUST(chdir("../two"));
    if (cmd == 'i') return MUST(stat(".", &st)), st.st_ino;
    if (cmd == 'w') write_file("inside", "x", 1);
    return 0;
}
static char d1[PATH_MAX], d2[PATH_MAX];
static void want(pid_t pid, const char *dir) {
    char path[64], buf[PATH_MAX] = {0};
    snprintf(path, sizeof path, "/proc/%d/cwd", pid);
    MUST(readlink(path, buf, sizeof buf - 1));
    CHECK(!strcmp(buf, dir), "the directory of %d is %s, not %s", pid, buf, dir);
}
static void setup(void) {
    MUST(mkdir("one", 0755)), MUST(mkdir("two", 0755));
    CHECK(realpath("one", d1) && realpath(".", d2), "realpath");
    a = agent_fork(work), b = agent_fork(work);
    ask(&a, '1');
}
static void check(void) {
    struct stat st;
    want(a.pid, d1), want(b.pid, d2);
    MUST(stat("one", &st));
    EQ(ask(&a, 'i'), st.st_ino);
    ask(&a, 'w');
    EQ(access("one/inside", F_OK), 0);
}
static void mutate(void) {
    ask(&a, '2');
    MUST(rename("one", "moved"));
}
