/* Processes waiting for locks (flock and POSIX) go on waiting, and get them when they are free. */
#include "probe.h"

static int fl, px;
static agent a, b;
static long work(int cmd) {
    if (cmd == 'f') {
        int fd = MUST(open("fl", O_RDWR | O_CLOEXEC));
        return MUST(flock(fd, LOCK_EX));
    }
    if (cmd == 'p') {
        struct flock l = {.l_type = F_WRLCK};
        return MUST(fcntl(px, F_SETLKW, &l));
    }
    return 0;
}
static void release(void) {
    struct flock l = {.l_type = F_UNLCK};
    MUST(flock(fl, LOCK_UN)), MUST(fcntl(px, F_SETLK, &l));
}
static void setup(void) {
    fl = MUST(open("fl", O_RDWR | O_CREAT | O_CLOEXEC, 0644)), px = MUST(open("px", O_RDWR | O_CREAT | O_CLOEXEC, 0644));
    struct flock l = {.l_type = F_WRLCK};
    MUST(flock(fl, LOCK_EX)), MUST(fcntl(px, F_SETLK, &l));
    a = agent_fork(work), b = agent_fork(work);
    tell(&a, 'f'), tell(&b, 'p');
    sleep_ms(20);
    wait_state(a.pid, 'S'), wait_state(b.pid, 'S');
}
static void check(void) {
    CHECK(!readable(a.rx, 20) && !readable(b.rx, 20), "a waiter has come back");
    release();
    EQ(answer(&a), 0), EQ(answer(&b), 0);
}
static void mutate(void) { release(), sleep_ms(20); }
