/* A listening TCP socket: address, options, and that it still takes connections. */
#include "probe.h"

static int l;
static struct sockaddr_in at = {.sin_family = AF_INET};
static socklen_t n = sizeof at;
static void setup(void) {
    int on = 1;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    l = MUST(socket(AF_INET, SOCK_STREAM, 0));
    MUST(setsockopt(l, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on)), MUST(setsockopt(l, IPPROTO_TCP, TCP_DEFER_ACCEPT, &(int){0}, sizeof on));
    MUST(bind(l, (void *)&at, sizeof at)), MUST(listen(l, 9)), MUST(getsockname(l, (void *)&at, &n));
}
static void check(void) {
    int c = MUST(socket(AF_INET, SOCK_STREAM, 0)), on = 0;
    socklen_t k = sizeof on;
    MUST(getsockopt(l, SOL_SOCKET, SO_REUSEADDR, &on, &k)), EQ(on, 1);
    CHECK(!connect(c, (void *)&at, sizeof at), "cannot connect: %s", strerror(errno));
    CHECK(readable(l, 1000), "the connection does not arrive");
    int s = MUST(accept(l, NULL, NULL));
    EQ(write(c, "hello", 5), 5), want_data(s, "hello", 5);
    close(s), close(c);
}
static void mutate(void) {
    close(l);
    l = MUST(open("/dev/null", O_RDONLY));
}
