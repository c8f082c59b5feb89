/* A lease on a file: told when somebody else opens it. */
#include "probe.h"

static int fd;
static agent a;
static long work(int cmd) {
    if (cmd == 'o') {
        int f = open("f", O_WRONLY | O_NONBLOCK | O_CLOEXEC), e = errno;
        if (f >= 0) close(f);
        return f >= 0 ? 0 : e;
    }
    return 0;
}
static void setup(void) {
    sigset_t s;
    sigemptyset(&s), sigaddset(&s, SIGIO);
    ZERO(pthread_sigmask(SIG_BLOCK, &s, NULL));
    write_file("f", "x", 1);
    fd = MUST(open("f", O_RDONLY | O_CLOEXEC));
    a = agent_fork(work);
    if (fcntl(fd, F_SETLEASE, F_RDLCK) < 0) skip("no leases here");
}
static void check(void) {
    EQ(fcntl(fd, F_GETLEASE), F_RDLCK);
    EQ(ask(&a, 'o'), EWOULDBLOCK);
    sigset_t s;
    struct timespec limit = {1, 0};
    sigemptyset(&s), sigaddset(&s, SIGIO);
    CHECK(sigtimedwait(&s, NULL, &limit) == SIGIO, "the breaking of the lease is not told");
    MUST(fcntl(fd, F_SETLEASE, F_UNLCK));
    EQ(ask(&a, 'o'), 0);
}
static void mutate(void) { MUST(fcntl(fd, F_SETLEASE, F_UNLCK)); }
