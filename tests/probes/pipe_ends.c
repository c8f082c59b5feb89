/* Pipes of which one end is closed: end of file after the rest, and EPIPE. */
#include "probe.h"

static int eof[2], broken[2];
static void setup(void) {
    MUST(pipe(eof)), MUST(pipe(broken));
    EQ(write(eof[1], "last words", 10), 10);
    close(eof[1]), close(broken[0]);
}
static void check(void) {
    struct pollfd f[2] = {{eof[0], POLLIN, 0}, {broken[1], POLLOUT, 0}};
    EQ(poll(f, 2, 0), 2);
    EQ(f[0].revents, POLLIN | POLLHUP), EQ(f[1].revents & POLLERR, POLLERR);
    want_data(eof[0], "last words", 10);
    char c;
    EQ(read(eof[0], &c, 1), 0);
    EQ(write(broken[1], "x", 1), -1), EQ(errno, EPIPE);
}
static void mutate(void) {
    char b[16];
    TRY(read(eof[0], b, 4));
    close(broken[1]);
    MUST(pipe(broken));
}
