/* The descriptor table: which numbers are open, on what, and the close-on-exec flags. */
#include "probe.h"

static char want[256][64];
static void scan(char out[256][64], int flags) {
    for (int i = 0; i < 256; i++) {
        char l[32], target[PATH_MAX] = {0};
        snprintf(l, sizeof l, "/proc/self/fd/%d", i);
        out[i][0] = 0;
        if (readlink(l, target, sizeof target - 1) > 0) snprintf(out[i], 64, "%d:%.50s", flags ? fcntl(i, F_GETFD) : 0, target);
    }
}
static void setup(void) {
    static const int at[] = {7, 20, 21, 63, 64, 65, 127, 128, 255};
    for (int i = 0; i < 9; i++) {
        char n[16];
        snprintf(n, sizeof n, "f%d", i);
        int fd = MUST(open(n, O_RDWR | O_CREAT, 0644));
        if (fd != at[i]) MUST(dup3(fd, at[i], i % 2 ? O_CLOEXEC : 0)), MUST(close(fd));
    }
    scan(want, 1);
}
static void check(void) {
    char now[256][64];
    scan(now, 1);
    for (int i = 3; i < 256; i++) CHECK(!strcmp(now[i], want[i]), "descriptor %d is '%s', not '%s'", i, now[i], want[i]);
    int fd = MUST(open("/dev/null", O_RDONLY)), lowest = 0;
    while (want[lowest][0]) lowest++;
    EQ(fd, lowest); /* the lowest free number, as always */
    close(fd);
}
static void mutate(void) {
    close(20), close(255), close(64);
    MUST(dup2(7, 90)), MUST(dup2(7, 65)), MUST(fcntl(63, F_SETFD, 0)), MUST(fcntl(21, F_SETFD, 0)), MUST(fcntl(7, F_SETFD, FD_CLOEXEC));
}
