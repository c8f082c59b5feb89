/* A listener and a datagram socket whose paths were removed: connected peers go on, the names stay what they were. */
#include "probe.h"

static int l, c, s, d, e;
static struct sockaddr_un al = {AF_UNIX, "stream"}, ad = {AF_UNIX, "dgram"};
static void setup(void) {
    l = MUST(socket(AF_UNIX, SOCK_STREAM, 0)), c = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
    MUST(bind(l, (void *)&al, sizeof al)), MUST(listen(l, 3)), MUST(connect(c, (void *)&al, sizeof al));
    s = MUST(accept(l, NULL, NULL));
    d = MUST(socket(AF_UNIX, SOCK_DGRAM, 0)), e = MUST(socket(AF_UNIX, SOCK_DGRAM, 0));
    MUST(bind(d, (void *)&ad, sizeof ad)), MUST(connect(e, (void *)&ad, sizeof ad));
    MUST(unlink("stream")), MUST(unlink("dgram"));
    EQ(send(e, "queued", 6, 0), 6);
}
static void check(void) {
    struct sockaddr_un n;
    socklen_t k = sizeof n;
    MUST(getsockname(l, (void *)&n, &k));
    CHECK(!strcmp(n.sun_path, "stream"), "the name is '%s'", n.sun_path);
    EQ(access("stream", F_OK), -1), EQ(access("dgram", F_OK), -1);
    EQ(write(c, "on", 2), 2), want_data(s, "on", 2);
    want_data(d, "queued", 6), EQ(send(e, "more", 4, 0), 4), want_data(d, "more", 4);
}
static void mutate(void) {
    close(c), close(d);
    write_file("stream", "a file now", 10);
}
