/* Descriptors that share one open file (dup, fork) move together; others of the same file do not. */
#include "probe.h"

static int one, two, apart;
static agent a;
static long work(int cmd) {
    if (cmd == 'p') return lseek(one, 0, SEEK_CUR);
    if (cmd == 's') return lseek(one, 7, SEEK_SET);
    if (cmd == 'n') return fcntl(two, F_GETFL) & O_NONBLOCK;
    if (cmd == 'm') {
        MUST(close(one));
        one = MUST(open("f", O_RDWR | O_CLOEXEC));
    }
    return 0;
}
static void setup(void) {
    write_file("f", "0123456789", 10);
    one = MUST(open("f", O_RDWR | O_CLOEXEC));
    two = MUST(fcntl(one, F_DUPFD, 200));
    apart = MUST(open("f", O_RDWR));
    a = agent_fork(work);
    MUST(lseek(one, 3, SEEK_SET));
}
static void check(void) {
    EQ(two, 200), EQ(fcntl(two, F_GETFD), 0), EQ(fcntl(one, F_GETFD), FD_CLOEXEC);
    EQ(lseek(two, 0, SEEK_CUR), 3), EQ(ask(&a, 'p'), 3), EQ(lseek(apart, 0, SEEK_CUR), 0);
    ask(&a, 's');
    EQ(lseek(two, 0, SEEK_CUR), 7), EQ(lseek(one, 0, SEEK_CUR), 7), EQ(lseek(apart, 0, SEEK_CUR), 0);
    MUST(fcntl(one, F_SETFL, O_NONBLOCK));
    EQ(ask(&a, 'n'), O_NONBLOCK), EQ(fcntl(apart, F_GETFL) & O_NONBLOCK, 0);
}
static void mutate(void) {
    MUST(close(two));
    MUST(dup2(apart, 200));
    MUST(lseek(one, 9, SEEK_SET));
    ask(&a, 'm');
}
