/* Locks of open file descriptions: held by the description, whichever process has it. */
#include "probe.h"

static int fd;
static agent a;
static void set(int d, int type, long from, long n) {
    struct flock l = {.l_type = type, .l_start = from, .l_len = n};
    MUST(fcntl(d, F_OFD_SETLK, &l));
}
static int look(int d, long at) {
    struct flock l = {.l_type = F_WRLCK, .l_start = at, .l_len = 1};
    MUST(fcntl(d, F_OFD_GETLK, &l));
    return l.l_type;
}
static long work(int cmd) {
    if (cmd == 'u') set(fd, F_UNLCK, 0, 10);
    return 0;
}
static void setup(void) {
    fd = MUST(open("f", O_RDWR | O_CREAT | O_CLOEXEC, 0644));
    set(fd, F_WRLCK, 0, 10), set(fd, F_RDLCK, 50, 10);
    a = agent_fork(work);
}
static void check(void) {
    int other = MUST(open("f", O_RDWR | O_CLOEXEC));
    EQ(look(other, 5), F_WRLCK), EQ(look(other, 55), F_RDLCK), EQ(look(other, 20), F_UNLCK), EQ(look(other, 200), F_UNLCK);
    ask(&a, 'u'); /* the child has the same description */
    EQ(look(other, 5), F_UNLCK);
    close(other);
}
static void mutate(void) { set(fd, F_UNLCK, 0, 0), set(fd, F_WRLCK, 200, 5); }
