/* POSIX record locks: ranges and kinds, held by the process that took them. */
#include "probe.h"

static int fd;
static agent a;
static void set(int type, long from, long n) {
    struct flock l = {.l_type = type, .l_start = from, .l_len = n};
    MUST(fcntl(fd, F_SETLK, &l));
}
static long look(int type, long at) { /* owner of what is in the way of one byte */
    struct flock l = {.l_type = type, .l_start = at, .l_len = 1};
    MUST(fcntl(fd, F_GETLK, &l));
    return l.l_type == F_UNLCK ? 0 : l.l_pid * 10 + (l.l_type == F_WRLCK);
}
static long work(int cmd) {
    if (cmd == 't') set(F_WRLCK, 500, 50);
    if (cmd == 'm') set(F_UNLCK, 500, 50), set(F_WRLCK, 600, 1);
    if (cmd == 'c') {
        EQ(look(F_RDLCK, 5), getppid() * 10 + 1), EQ(look(F_WRLCK, 105), getppid() * 10), EQ(look(F_RDLCK, 105), 0);
        EQ(look(F_WRLCK, 150), 0), EQ(look(F_WRLCK, 99999), getppid() * 10 + 1), EQ(look(F_WRLCK, 600), 0);
    }
    return 0;
}
static void setup(void) {
    fd = MUST(open("f", O_RDWR | O_CREAT | O_CLOEXEC, 0644));
    set(F_WRLCK, 0, 100), set(F_RDLCK, 100, 100), set(F_UNLCK, 120, 60), set(F_WRLCK, 10000, 0);
    a = agent_fork(work);
    ask(&a, 't');
}
static void check(void) {
    ask(&a, 'c');
    EQ(look(F_RDLCK, 520), a.pid * 10 + 1), EQ(look(F_WRLCK, 560), 0), EQ(look(F_WRLCK, 600), 0);
}
static void mutate(void) {
    set(F_UNLCK, 0, 0), set(F_RDLCK, 300, 10);
    ask(&a, 'm');
}
