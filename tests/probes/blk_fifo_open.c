/* Opening a FIFO waits for the other side. */
#include "probe.h"

static blocked b;
static long opening(void) {
    int fd = open("fifo", O_RDONLY);
    return fd >= 0 ? close(fd) : -errno;
}
static void setup(void) {
    MUST(mkfifo("fifo", 0600));
    block_in(&b, opening);
}
static void release(void) {
    int fd = MUST(open("fifo", O_WRONLY | O_NONBLOCK));
    WAIT_FOR(b.done, 1000);
    close(fd);
}
static void check(void) {
    want_blocked(&b);
    release();
    want_return(&b, 0);
}
static void mutate(void) { release(); }
