/* Connections that nobody accepted yet, with data in them. */
#include "probe.h"

static int l, c[3];
static struct sockaddr_in at = {.sin_family = AF_INET};
static void setup(void) {
    socklen_t n = sizeof at;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    l = MUST(socket(AF_INET, SOCK_STREAM, 0));
    MUST(bind(l, (void *)&at, sizeof at)), MUST(listen(l, 8)), MUST(getsockname(l, (void *)&at, &n));
    for (int i = 0; i < 3; i++) {
        c[i] = MUST(socket(AF_INET, SOCK_STREAM, 0));
        MUST(connect(c[i], (void *)&at, sizeof at));
        EQ(dprintf(c[i], "client %d", i), 8);
    }
    sleep_ms(10);
}
static void check(void) {
    for (int i = 0; i < 3; i++) {
        char w[16];
        CHECK(readable(l, 500), "connection %d is not waiting", i);
        int s = MUST(accept(l, NULL, NULL));
        snprintf(w, sizeof w, "client %d", i);
        want_data(s, w, 8);
        EQ(write(s, "ok", 2), 2), want_data(c[i], "ok", 2);
        close(s);
    }
}
static void mutate(void) {
    if (readable(l, 0)) close(MUST(accept(l, NULL, NULL))); /* unless the check has accepted them */
    close(c[1]);
}
