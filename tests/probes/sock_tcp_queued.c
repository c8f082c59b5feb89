/* TCP with data queued in both directions, some of it read. */
#include "probe.h"
#include "sock_tcp.h"

static char *data;
#define N 200000
static long sent;
static void setup(void) {
    connect_pair();
    data = map_anon(1 << 20);
    fill(data, 1 << 20, 3);
    MUST(fcntl(client, F_SETFL, O_NONBLOCK));
    for (long n; sent < N && (n = write(client, data + sent, N - sent)) > 0;) sent += n;
    MUST(fcntl(client, F_SETFL, 0));
    EQ(write(server, "the other way", 13), 13);
    sleep_ms(20);
    want_data(server, data, 1000);
}
static void check(void) {
    want_data(server, data + 1000, sent - 1000);
    want_data(client, "the other way", 13);
    EQ(write(client, "and on", 6), 6), want_data(server, "and on", 6);
    EQ(write(server, "and back", 8), 8), want_data(client, "and back", 8);
    EQ(readable(server, 10), 0);
}
static void mutate(void) {
    char b[5000];
    TRY(recv(server, b, 5000, MSG_DONTWAIT));
    TRY(recv(client, b, 3, MSG_DONTWAIT));
    EQ(write(server, "junk", 4), 4);
}
