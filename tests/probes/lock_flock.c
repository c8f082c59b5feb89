/* flock: exclusive and shared, held by an open file that a child shares. */
#include "probe.h"

static int ex, sh;
static agent a;
static long work(int cmd) {
    if (cmd == 'x') { /* another open file */
        int fd = MUST(open("ex", O_RDWR | O_CLOEXEC));
        int r = flock(fd, LOCK_EX | LOCK_NB), e = errno;
        close(fd);
        return r ? e : 0;
    }
    if (cmd == 's' || cmd == 'S') {
        int fd = MUST(open("sh", O_RDWR | O_CLOEXEC));
        int r = flock(fd, (cmd == 's' ? LOCK_SH : LOCK_EX) | LOCK_NB), e = errno;
        close(fd);
        return r ? e : 0;
    }
    if (cmd == 'u') MUST(flock(ex, LOCK_UN)); /* the shared open file */
    return 0;
}
static void setup(void) {
    ex = MUST(open("ex", O_RDWR | O_CREAT | O_CLOEXEC, 0644)), sh = MUST(open("sh", O_RDWR | O_CREAT | O_CLOEXEC, 0644));
    MUST(flock(ex, LOCK_EX)), MUST(flock(sh, LOCK_SH));
    a = agent_fork(work);
}
static void check(void) {
    EQ(ask(&a, 'x'), EWOULDBLOCK), EQ(ask(&a, 's'), 0), EQ(ask(&a, 'S'), EWOULDBLOCK);
    ask(&a, 'u');
    EQ(ask(&a, 'x'), 0);
}
static void mutate(void) {
    MUST(flock(ex, LOCK_UN)), MUST(flock(sh, LOCK_EX));
}
