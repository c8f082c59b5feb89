/* Halves that were shut down, a peer that is gone leaving data behind, a connection never accepted. */
#include "probe.h"

static int half[2], orphan[2], l, unaccepted;
static void setup(void) {
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, half)), MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, orphan));
    EQ(write(half[0], "last", 4), 4), MUST(shutdown(half[0], SHUT_WR));
    EQ(write(orphan[1], "legacy", 6), 6);
    close(orphan[1]);
    struct sockaddr_un a = {AF_UNIX, "s"};
    l = MUST(socket(AF_UNIX, SOCK_STREAM, 0)), unaccepted = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
    MUST(bind(l, (void *)&a, sizeof a)), MUST(listen(l, 1)), MUST(connect(unaccepted, (void *)&a, sizeof a));
}
static void check(void) {
    char c;
    want_data(half[1], "last", 4), EQ(read(half[1], &c, 1), 0);
    EQ(write(half[1], "still", 5), 5), want_data(half[0], "still", 5);
    EQ(write(half[0], "x", 1), -1), EQ(errno, EPIPE);
    want_data(orphan[0], "legacy", 6), EQ(read(orphan[0], &c, 1), 0);
    EQ(write(orphan[0], "x", 1), -1), EQ(errno, EPIPE);
    EQ(write(unaccepted, "early", 5), 5);
    want_data(MUST(accept(l, NULL, NULL)), "early", 5);
}
static void mutate(void) {
    char b[8];
    TRY(read(half[1], b, 8));
    TRY(read(orphan[0], b, 2));
    TRY(shutdown(half[1], SHUT_RDWR));
    close(l);
}
