/* Pairs of datagram and of sequenced-packet sockets: the boundaries of queued messages, empty ones too. */
#include "probe.h"

static int d[2], q[2];
static void setup(void) {
    MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, d)), MUST(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, q));
    EQ(send(d[0], "one", 3, 0), 3), EQ(send(d[0], "", 0, 0), 0), EQ(send(d[0], "three", 5, 0), 5);
    EQ(send(q[0], "first packet", 12, 0), 12), EQ(send(q[0], "2", 1, 0), 1);
}
static void check(void) {
    char b[64];
    EQ(recv(d[1], b, 64, MSG_DONTWAIT), 3), EQ(recv(d[1], b, 64, MSG_DONTWAIT), 0), EQ(recv(d[1], b, 64, MSG_DONTWAIT), 5);
    CHECK(!memcmp(b, "three", 5), "the third is %.5s", b);
    EQ(recv(d[1], b, 64, MSG_DONTWAIT), -1);
    EQ(recv(q[1], b, 5, MSG_DONTWAIT | MSG_TRUNC), 12), EQ(recv(q[1], b, 64, MSG_DONTWAIT), 1);
    EQ(send(q[1], "back", 4, 0), 4), EQ(recv(q[0], b, 64, MSG_DONTWAIT), 4);
}
static void mutate(void) {
    char b[64];
    TRY(recv(d[1], b, 64, MSG_DONTWAIT));
    TRY(recv(q[1], b, 64, MSG_DONTWAIT));
    EQ(send(d[0], "four", 4, 0), 4);
}
