/* TCP with both buffers full and a writer blocked. */
#include "probe.h"
#include "sock_tcp.h"

static char *data;
static long sent;
static blocked b;
static long push(void) { return write(client, data + sent, 100000); }
static void setup(void) {
    int size = 20000;
    connect_pair();
    MUST(setsockopt(client, SOL_SOCKET, SO_SNDBUF, &size, sizeof size)), MUST(setsockopt(server, SOL_SOCKET, SO_RCVBUF, &size, sizeof size));
    data = map_anon(8 << 20);
    fill(data, 8 << 20, 3);
    MUST(fcntl(client, F_SETFL, O_NONBLOCK));
    for (int i = 0; i < 20; i++) {
        for (long n; (n = write(client, data + sent, 100000)) > 0;) sent += n;
        sleep_ms(5);
    }
    MUST(fcntl(client, F_SETFL, 0));
    block_in(&b, push);
}
static void check(void) {
    want_blocked(&b);
    want_data(server, data, sent + 100000);
    want_return(&b, 100000);
}
static void mutate(void) {
    static char junk[1 << 20];
    for (int i = 0; i < 40 && !b.done; i++) {
        if (readable(server, 10)) TRY(read(server, junk, sizeof junk));
    }
}
