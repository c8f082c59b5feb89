/* Options of TCP sockets, listening and connected. */
#include "probe.h"
#include "sock_tcp.h"

static const int opts[][3] = {
    {IPPROTO_TCP, TCP_NODELAY, 1}, {SOL_SOCKET, SO_KEEPALIVE, 1}, {IPPROTO_TCP, TCP_KEEPIDLE, 77}, {IPPROTO_TCP, TCP_KEEPINTVL, 33},
    {IPPROTO_TCP, TCP_KEEPCNT, 4}, {IPPROTO_TCP, TCP_USER_TIMEOUT, 60000}, {SOL_SOCKET, SO_OOBINLINE, 1}, {IPPROTO_IP, IP_TOS, 0x10}, {SOL_SOCKET, SO_RCVLOWAT, 2},
};
#define N (int)(sizeof opts / sizeof *opts)
static struct linger lin = {1, 5};
static void setup(void) {
    connect_pair();
    for (int i = 0; i < N; i++) MUST(setsockopt(client, opts[i][0], opts[i][1], &opts[i][2], sizeof(int)));
    MUST(setsockopt(client, SOL_SOCKET, SO_LINGER, &lin, sizeof lin));
}
static void check(void) {
    for (int i = 0; i < N; i++) {
        int v = -1;
        socklen_t n = sizeof v;
        MUST(getsockopt(client, opts[i][0], opts[i][1], &v, &n));
        CHECK(v == opts[i][2], "option %d/%d is %d, not %d", opts[i][0], opts[i][1], v, opts[i][2]);
    }
    struct linger g;
    socklen_t n = sizeof g;
    MUST(getsockopt(client, SOL_SOCKET, SO_LINGER, &g, &n)), EQ(g.l_linger, 5), EQ(g.l_onoff, 1);
    EQ(write(client, "ping", 4), 4), want_data(server, "ping", 4);
}
static void mutate(void) {
    int zero = 0, ten = 10;
    MUST(setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &zero, 4)), MUST(setsockopt(client, SOL_SOCKET, SO_KEEPALIVE, &zero, 4)), MUST(setsockopt(client, IPPROTO_TCP, TCP_KEEPIDLE, &ten, 4));
}
