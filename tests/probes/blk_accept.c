/* accept, recv and connectionless receive, blocked. */
#include "probe.h"

static int l, d[2], u;
static struct sockaddr_un a = {AF_UNIX, "l"};
static struct sockaddr_in in = {.sin_family = AF_INET};
static blocked b[3];
static long accepting(void) {
    int fd = accept(l, NULL, NULL);
    return fd >= 0 ? close(fd) : -1;
}
static long receiving(void) {
    char x[8];
    return recv(d[0], x, 8, 0);
}
static long receiving_udp(void) {
    char x[8];
    return recvfrom(u, x, 8, 0, NULL, NULL);
}
static void setup(void) {
    socklen_t n = sizeof in;
    l = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
    MUST(bind(l, (void *)&a, sizeof a)), MUST(listen(l, 3)), MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, d));
    in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    u = MUST(socket(AF_INET, SOCK_DGRAM, 0));
    MUST(bind(u, (void *)&in, n)), MUST(getsockname(u, (void *)&in, &n));
    block_in(&b[0], accepting), block_in(&b[1], receiving), block_in(&b[2], receiving_udp);
}
static void release(void) {
    int c = MUST(socket(AF_UNIX, SOCK_STREAM, 0)), s = MUST(socket(AF_INET, SOCK_DGRAM, 0));
    MUST(connect(c, (void *)&a, sizeof a));
    EQ(send(d[1], "abc", 3, 0), 3), EQ(sendto(s, "abcd", 4, 0, (void *)&in, sizeof in), 4);
    WAIT_FOR(b[0].done && b[1].done && b[2].done, 1000);
    close(c), close(s);
}
static void check(void) {
    for (int i = 0; i < 3; i++) want_blocked(&b[i]);
    release();
    want_return(&b[0], 0), want_return(&b[1], 3), want_return(&b[2], 4);
}
static void mutate(void) { release(); }
