/* UDP: bound, connected, with datagrams queued that know their senders. */
#include "probe.h"

static int a, b;
static struct sockaddr_in sa = {.sin_family = AF_INET}, sb = {.sin_family = AF_INET};
static void setup(void) {
    socklen_t n = sizeof sa;
    sa.sin_addr.s_addr = sb.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    a = MUST(socket(AF_INET, SOCK_DGRAM, 0)), b = MUST(socket(AF_INET, SOCK_DGRAM, 0));
    MUST(bind(a, (void *)&sa, n)), MUST(getsockname(a, (void *)&sa, &n)), MUST(bind(b, (void *)&sb, n)), MUST(getsockname(b, (void *)&sb, &n));
    MUST(connect(b, (void *)&sa, n));
    EQ(send(b, "one", 3, 0), 3), EQ(send(b, "", 0, 0), 0), EQ(send(b, "three", 5, 0), 5);
    sleep_ms(5);
}
static void check(void) {
    static const char *want[3] = {"one", "", "three"};
    struct sockaddr_in from;
    char buf[64];
    for (int i = 0; i < 3; i++) {
        socklen_t n = sizeof from;
        memset(buf, 0, sizeof buf);
        CHECK(recvfrom(a, buf, 63, MSG_DONTWAIT, (void *)&from, &n) == (ssize_t)strlen(want[i]), "datagram %d is '%s'", i, buf);
        CHECK(!strcmp(buf, want[i]), "datagram %d is '%s'", i, buf);
        EQ(from.sin_port, sb.sin_port);
    }
    EQ(recv(a, buf, 64, MSG_DONTWAIT), -1);
    socklen_t n = sizeof from;
    MUST(getpeername(b, (void *)&from, &n)), EQ(from.sin_port, sa.sin_port);
    EQ(sendto(a, "back", 4, 0, (void *)&sb, sizeof sb), 4), want_data(b, "back", 4);
}
static void mutate(void) {
    char buf[64];
    struct sockaddr_in none = {.sin_family = AF_UNSPEC};
    TRY(recv(a, buf, 64, MSG_DONTWAIT));
    MUST(connect(b, (void *)&none, sizeof none));
}
