/* Sockets not yet used: unbound, bound but not listening, with an error waiting. */
#include "probe.h"

static int raw, bound, refused, un;
static struct sockaddr_in at = {.sin_family = AF_INET};
static void setup(void) {
    socklen_t n = sizeof at;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    raw = MUST(socket(AF_INET, SOCK_STREAM, 0)), bound = MUST(socket(AF_INET, SOCK_STREAM, 0)), un = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
    MUST(bind(bound, (void *)&at, n)), MUST(getsockname(bound, (void *)&at, &n));
    refused = MUST(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
    EQ(connect(refused, (void *)&at, n), -1);
    sleep_ms(20);
}
static void check(void) {
    struct sockaddr_in g;
    socklen_t n = sizeof g;
    MUST(getsockname(bound, (void *)&g, &n)), EQ(g.sin_port, at.sin_port);
    MUST(listen(bound, 1)), MUST(connect(raw, (void *)&at, sizeof at));
    close(MUST(accept(bound, NULL, NULL)));
    struct sockaddr_un a = {AF_UNIX, "late"};
    MUST(bind(un, (void *)&a, sizeof a));
}
static void mutate(void) {
    struct sockaddr_un a = {AF_UNIX, "other"};
    TRY(bind(un, (void *)&a, sizeof a));
    TRY(listen(bound, 1));
    close(raw);
}
