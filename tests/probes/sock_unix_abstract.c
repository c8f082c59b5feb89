/* Sockets with abstract names: stream listener, datagram. */
#include "probe.h"

static int l, d;
static struct sockaddr_un sl = {AF_UNIX, "\0probe listener"}, sd = {AF_UNIX, "\0probe dgram"};
static socklen_t nl, nd;
static void setup(void) {
    char tag[16];
    int n = snprintf(tag, sizeof tag, "%d", getpid());
    memcpy(sl.sun_path + 15, tag, n), memcpy(sd.sun_path + 12, tag, n);
    nl = offsetof(struct sockaddr_un, sun_path) + 15 + n, nd = offsetof(struct sockaddr_un, sun_path) + 12 + n;
    l = MUST(socket(AF_UNIX, SOCK_STREAM, 0)), d = MUST(socket(AF_UNIX, SOCK_DGRAM, 0));
    MUST(bind(l, (void *)&sl, nl)), MUST(listen(l, 3)), MUST(bind(d, (void *)&sd, nd));
    int s = MUST(socket(AF_UNIX, SOCK_DGRAM, 0));
    EQ(sendto(s, "queued", 6, 0, (void *)&sd, nd), 6);
    close(s);
}
static void check(void) {
    int c = MUST(socket(AF_UNIX, SOCK_STREAM, 0)), s = MUST(socket(AF_UNIX, SOCK_DGRAM, 0));
    MUST(connect(c, (void *)&sl, nl));
    close(MUST(accept(l, NULL, NULL))), close(c);
    char b[16];
    EQ(recv(d, b, 16, MSG_DONTWAIT), 6);
    EQ(sendto(s, "again", 5, 0, (void *)&sd, nd), 5), EQ(recv(d, b, 16, MSG_DONTWAIT), 5);
    EQ(bind(s, (void *)&sd, nd), -1), EQ(errno, EADDRINUSE);
    close(s);
}
static void mutate(void) {
    close(l);
    char b[16];
    TRY(recv(d, b, 16, MSG_DONTWAIT));
}
