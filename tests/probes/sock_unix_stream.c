/* A pair of stream sockets: data queued both ways, across processes. */
#include "probe.h"

static int s[2];
static agent a;
static char *data;
static long work(int cmd) {
    if (cmd == 'c') want_data(s[1], data, 50000), want_data(s[1], "tail", 4);
    if (cmd == 'w') EQ(write(s[1], "reply", 5), 5);
    if (cmd == 'm') {
        char b[1000];
        EQ(read(s[1], b, 1000), 1000);
    }
    return 0;
}
static void setup(void) {
    data = map_anon(65536);
    fill(data, 65536, 7);
    MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, s));
    a = agent_fork(work);
    EQ(write(s[0], data, 50000), 50000), EQ(write(s[0], "tail", 4), 4);
    EQ(write(s[1], "backwards", 9), 9);
}
static void check(void) {
    int n;
    MUST(ioctl(s[0], FIONREAD, &n)), EQ(n, 9);
    want_data(s[0], "backwards", 9);
    ask(&a, 'c'), ask(&a, 'w');
    want_data(s[0], "reply", 5);
}
static void mutate(void) {
    ask(&a, 'm');
    EQ(write(s[0], "more", 4), 4), MUST(shutdown(s[1], SHUT_WR));
}
