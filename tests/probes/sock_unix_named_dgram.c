/* Datagram sockets bound to paths: queued messages know their senders, even senders that are gone. */
#include "probe.h"

static int srv, cli;
static struct sockaddr_un as = {AF_UNIX, "srv"}, ac = {AF_UNIX, "cli"}, ag = {AF_UNIX, "gone"};
static void setup(void) {
    srv = MUST(socket(AF_UNIX, SOCK_DGRAM, 0)), cli = MUST(socket(AF_UNIX, SOCK_DGRAM, 0));
    int gone = MUST(socket(AF_UNIX, SOCK_DGRAM, 0));
    MUST(bind(srv, (void *)&as, sizeof as)), MUST(bind(cli, (void *)&ac, sizeof ac)), MUST(bind(gone, (void *)&ag, sizeof ag));
    MUST(connect(cli, (void *)&as, sizeof as)), MUST(connect(gone, (void *)&as, sizeof as));
    EQ(send(cli, "from cli", 8, 0), 8), EQ(send(gone, "from gone", 9, 0), 9);
    close(gone), unlink("gone");
}
static void want(const char *text, const char *from) {
    char b[64] = {0};
    struct sockaddr_un a = {0};
    socklen_t n = sizeof a;
    CHECK(recvfrom(srv, b, 63, MSG_DONTWAIT, (void *)&a, &n) == (ssize_t)strlen(text), "'%s' is not there: %s", text, b);
    CHECK(!strcmp(b, text) && !strcmp(a.sun_path, from), "'%s' comes from '%s'", b, a.sun_path);
}
static void check(void) {
    want("from cli", "cli"), want("from gone", "gone");
    EQ(sendto(srv, "answer", 6, 0, (void *)&ac, sizeof ac), 6);
    want_data(cli, "answer", 6);
    EQ(send(cli, "more", 4, 0), 4);
    want("more", "cli");
}
static void mutate(void) {
    char b[64];
    TRY(recv(srv, b, 64, MSG_DONTWAIT));
    close(cli);
    unlink("cli");
}
