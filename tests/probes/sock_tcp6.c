/* TCP over IPv6, and an IPv6 listener that takes IPv4. */
#include "probe.h"

static int l, c, s;
static struct sockaddr_in6 at = {.sin6_family = AF_INET6};
static void setup(void) {
    socklen_t n = sizeof at;
    l = socket(AF_INET6, SOCK_STREAM, 0);
    if (l < 0) skip("no IPv6 here");
    if (bind(l, (void *)&at, sizeof at) < 0) skip("no IPv6 address to bind");
    MUST(listen(l, 4)), MUST(getsockname(l, (void *)&at, &n));
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = at.sin6_port};
    v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    c = MUST(socket(AF_INET, SOCK_STREAM, 0));
    MUST(connect(c, (void *)&v4, sizeof v4));
    s = MUST(accept(l, NULL, NULL));
    EQ(write(c, "mapped", 6), 6);
    sleep_ms(5);
}
static void check(void) {
    want_data(s, "mapped", 6);
    EQ(write(s, "back", 4), 4), want_data(c, "back", 4);
    struct sockaddr_in6 six = at;
    six.sin6_addr = in6addr_loopback;
    int d = MUST(socket(AF_INET6, SOCK_STREAM, 0));
    if (connect(d, (void *)&six, sizeof six) == 0) CHECK(readable(l, 500), "the connection does not arrive");
    close(d);
}
static void mutate(void) {
    char b[3];
    TRY(recv(s, b, 3, MSG_DONTWAIT));
    close(l);
}
