/* Flags of open files: those that can be changed and those that cannot. */
#include "probe.h"

static const int flags[] = {O_RDONLY, O_WRONLY | O_SYNC, O_RDWR | O_DSYNC, O_RDONLY | O_NOATIME, O_PATH, O_RDWR | O_NONBLOCK | O_APPEND, O_RDONLY | O_DIRECTORY};
static int fd[7], want[7];
static void setup(void) {
    write_file("f", "x", 1);
    for (int i = 0; i < 7; i++) {
        fd[i] = open(flags[i] & O_DIRECTORY ? "." : "f", flags[i]);
        CHECK(fd[i] >= 0, "open with flags %o: %s", flags[i], strerror(errno));
        want[i] = fcntl(fd[i], F_GETFL);
    }
}
static void check(void) {
    for (int i = 0; i < 7; i++) {
        int f = fcntl(fd[i], F_GETFL);
        CHECK(f == want[i], "file %d has flags %o, not %o", i, f, want[i]);
    }
    char c;
    EQ(read(fd[4], &c, 1), -1), EQ(errno, EBADF);
}
static void mutate(void) {
    MUST(fcntl(fd[0], F_SETFL, O_NONBLOCK)), MUST(fcntl(fd[5], F_SETFL, 0)), MUST(fcntl(fd[3], F_SETFL, 0));
    close(fd[4]), MUST(open("f", O_RDWR));
}
