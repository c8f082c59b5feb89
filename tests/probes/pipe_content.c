/* Pipes with content: whole, half read, with both ends in different processes. */
#include "probe.h"

static int p[2];
static agent a;
static long work(int cmd) {
    char b[8];
    if (cmd == 'r') EQ(read(p[0], b, 5), 5), CHECK(!memcmp(b, "world", 5), "the child reads %.5s", b);
    if (cmd == 'm') EQ(read(p[0], b, 3), 3);
    return 0;
}
static void setup(void) {
    MUST(pipe2(p, O_CLOEXEC));
    a = agent_fork(work);
    EQ(write(p[1], "junk: hello, ", 13), 13), EQ(write(p[1], "world, and more", 15), 15);
    char b[6];
    EQ(read(p[0], b, 6), 6);
}
static void check(void) {
    int n;
    MUST(ioctl(p[0], FIONREAD, &n)), EQ(n, 22);
    want_data(p[0], "hello, ", 7);
    ask(&a, 'r');
    want_data(p[0], ", and more", 10);
    MUST(ioctl(p[0], FIONREAD, &n)), EQ(n, 0);
}
static void mutate(void) {
    ask(&a, 'm');
    EQ(write(p[1], "added since", 11), 11);
}
