/* A log opened with O_APPEND by two processes: what was appended since is gone, what comes now follows the rest. */
#include "probe.h"

static int fd;
static agent a;
static long work(int cmd) {
    if (cmd == 'w') EQ(write(fd, "child\n", 6), 6);
    return 0;
}
static void setup(void) {
    fd = MUST(open("log", O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644));
    a = agent_fork(work);
    EQ(write(fd, "first\n", 6), 6);
    ask(&a, 'w');
}
static void check(void) {
    EQ(fcntl(fd, F_GETFL) & (O_APPEND | O_ACCMODE), O_APPEND | O_WRONLY);
    want_file("log", "first\nchild\n", 12);
    MUST(lseek(fd, 0, SEEK_SET));
    EQ(write(fd, "last\n", 5), 5), ask(&a, 'w');
    want_file("log", "first\nchild\nlast\nchild\n", 23);
}
static void mutate(void) {
    for (int i = 0; i < 50; i++) EQ(write(fd, "junk\n", 5), 5);
    MUST(fcntl(fd, F_SETFL, 0));
    ask(&a, 'w');
}
