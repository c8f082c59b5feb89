/* TCP connections of which one direction is closed, with data still to be read; and one whose peer is gone. */
#include "probe.h"
#include "sock_tcp.h"

static int c2, s2;
static void setup(void) {
    connect_pair();
    c2 = client, s2 = server;
    close(listener);
    connect_pair();
    EQ(write(client, "the end", 7), 7), MUST(shutdown(client, SHUT_WR));
    EQ(write(s2, "gone", 4), 4);
    close(s2);
    sleep_ms(20);
}
static void check(void) {
    char c;
    want_data(server, "the end", 7), CHECK(readable(server, 500), "no end of file"), EQ(read(server, &c, 1), 0);
    EQ(write(server, "still open", 10), 10), want_data(client, "still open", 10);
    want_data(c2, "gone", 4), EQ(read(c2, &c, 1), 0);
}
static void mutate(void) {
    char b[8];
    TRY(read(server, b, 8));
    MUST(shutdown(server, SHUT_WR));
    TRY(read(c2, b, 2));
}
