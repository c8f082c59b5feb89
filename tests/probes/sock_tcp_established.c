/* An established TCP connection between two processes: addresses, and that it works both ways. */
#include "probe.h"
#include "sock_tcp.h"

static agent a;
static struct sockaddr_in me, peer;
static long work(int cmd) {
    if (cmd == 'r') want_data(server, "request", 7), EQ(write(server, "answer", 6), 6);
    if (cmd == 'x') close(server);
    return 0;
}
static void setup(void) {
    socklen_t n = sizeof me;
    connect_pair();
    a = agent_fork(work);
    close(server);
    MUST(getsockname(client, (void *)&me, &n)), MUST(getpeername(client, (void *)&peer, &n));
    for (int i = 0; i < 3; i++) EQ(write(client, "request", 7), 7), ask(&a, 'r'), want_data(client, "answer", 6);
}
static void check(void) {
    struct sockaddr_in x;
    socklen_t n = sizeof x;
    MUST(getsockname(client, (void *)&x, &n)), EQ(x.sin_port, me.sin_port);
    CHECK(!getpeername(client, (void *)&x, &n), "the connection is gone: %s", strerror(errno));
    EQ(x.sin_port, peer.sin_port);
    for (int i = 0; i < 3; i++) EQ(write(client, "request", 7), 7), ask(&a, 'r'), want_data(client, "answer", 6);
}
static void mutate(void) {
    EQ(write(client, "request", 7), 7), ask(&a, 'r');
    ask(&a, 'x');
    char b[16];
    TRY(read(client, b, 16));
    sleep_ms(10);
}
