/* A server and a client that connect, talk and close over the loopback, again and again. */
#include "run.h"

static int l;
static struct sockaddr_in at = {.sin_family = AF_INET};
static void round_of(int i) {
    char b[4096];
    if (i == 0) {
        struct pollfd f = {l, POLLIN, 0};
        if (poll(&f, 1, 100) != 1) return;
        int s = accept(l, NULL, NULL);
        GOOD(s >= 0);
        ssize_t n, total = 0;
        while ((n = read(s, b, sizeof b)) > 0) total += n;
        GOOD(n == 0 && total == 20000);
        GOOD(write(s, "done", 4) == 4);
        close(s);
    } else {
        int c = socket(AF_INET, SOCK_STREAM, 0);
        GOOD(connect(c, (void *)&at, sizeof at) == 0);
        memset(b, 7, sizeof b);
        for (int k = 0; k < 20; k++) GOOD(write(c, b, 1000) == 1000);
        shutdown(c, SHUT_WR);
        if (!run->stop) GOOD(read(c, b, 10) == 4);
        close(c);
    }
}
static void setup(void) {
    socklen_t n = sizeof at;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    l = MUST(socket(AF_INET, SOCK_STREAM, 0));
    MUST(bind(l, (void *)&at, sizeof at)), MUST(listen(l, 9)), MUST(getsockname(l, (void *)&at, &n));
    run_as_processes(2);
}
