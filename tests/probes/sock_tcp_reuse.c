/* Two listeners on one port (SO_REUSEPORT). */
#include "probe.h"

static int l[2];
static struct sockaddr_in at = {.sin_family = AF_INET};
static void setup(void) {
    int on = 1;
    socklen_t n = sizeof at;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    for (int i = 0; i < 2; i++) {
        l[i] = MUST(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
        MUST(setsockopt(l[i], SOL_SOCKET, SO_REUSEPORT, &on, sizeof on));
        MUST(bind(l[i], (void *)&at, n)), MUST(listen(l[i], 50)), MUST(getsockname(l[i], (void *)&at, &n));
    }
}
static void check(void) {
    int got = 0;
    for (int i = 0; i < 10; i++) {
        int c = MUST(socket(AF_INET, SOCK_STREAM, 0));
        CHECK(!connect(c, (void *)&at, sizeof at), "cannot connect: %s", strerror(errno));
        for (int k = 0; k < 2; k++) {
            int s = accept(l[k], NULL, NULL);
            if (s >= 0) got++, close(s);
        }
        close(c);
    }
    EQ(got, 10);
    int on = 0;
    socklen_t n = sizeof on;
    MUST(getsockopt(l[1], SOL_SOCKET, SO_REUSEPORT, &on, &n)), EQ(on, 1);
}
static void mutate(void) { close(l[0]), close(l[1]); }
