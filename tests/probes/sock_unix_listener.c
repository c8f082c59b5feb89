/* A listening unix socket by path: connections waiting in its backlog with data, new ones, accepted ones. */
#include "probe.h"

static int l, waiting[3], client, server;
static struct sockaddr_un at = {AF_UNIX, "sock"};
static int dial(void) {
    int fd = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
    MUST(connect(fd, (void *)&at, sizeof at));
    return fd;
}
static void setup(void) {
    l = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
    MUST(bind(l, (void *)&at, sizeof at)), MUST(listen(l, 5));
    client = dial(), server = MUST(accept(l, NULL, NULL));
    EQ(write(client, "queued", 6), 6);
    for (int i = 0; i < 3; i++) {
        waiting[i] = dial();
        EQ(dprintf(waiting[i], "client %d", i), 8);
    }
}
static void check(void) {
    char w[32];
    int on = 0;
    socklen_t n = sizeof on;
    MUST(getsockopt(l, SOL_SOCKET, SO_ACCEPTCONN, &on, &n)), EQ(on, 1);
    want_data(server, "queued", 6);
    EQ(write(server, "back", 4), 4), want_data(client, "back", 4);
    for (int i = 0; i < 3; i++) {
        CHECK(readable(l, 100), "connection %d is not waiting", i);
        int fd = MUST(accept(l, NULL, NULL));
        snprintf(w, sizeof w, "client %d", i);
        want_data(fd, w, 8);
        EQ(write(fd, "ok", 2), 2), want_data(waiting[i], "ok", 2);
        close(fd);
    }
    EQ(readable(l, 10), 0);
    int again = dial();
    CHECK(readable(l, 100), "a new connection does not arrive");
    close(again);
    struct sockaddr_un name;
    n = sizeof name;
    MUST(getsockname(server, (void *)&name, &n));
    CHECK(!strcmp(name.sun_path, "sock"), "its name is '%s'", name.sun_path);
}
static void mutate(void) {
    char b[6];
    TRY(read(server, b, 3));
    close(MUST(accept(l, NULL, NULL)));
    close(waiting[1]);
    unlink("sock");
}
