/* Descriptors of /dev/null, /dev/zero, /dev/full, /dev/urandom and of files in /proc. */
#include "probe.h"

static int fd[6];
static const char *path[6] = {"/dev/null", "/dev/zero", "/dev/full", "/dev/urandom", "/proc/self/status", "/proc/self/maps"};
static void setup(void) {
    for (int i = 0; i < 6; i++) {
        fd[i] = open(path[i], i < 4 ? O_RDWR : O_RDONLY);
        CHECK(fd[i] >= 0, "cannot open %s: %s", path[i], strerror(errno));
    }
}
static void check(void) {
    char b[64] = {1}, want[64];
    EQ(read(fd[0], b, 8), 0), EQ(write(fd[0], b, 8), 8);
    EQ(read(fd[1], b, 8), 8), EQ(b[0], 0);
    EQ(write(fd[2], b, 8), -1), EQ(errno, ENOSPC);
    EQ(read(fd[3], b, 8), 8);
    EQ(lseek(fd[4], 0, SEEK_SET), 0);
    memset(b, 0, sizeof b);
    EQ(read(fd[4], b, 20), 20);
    char comm[16];
    MUST(prctl(PR_GET_NAME, comm));
    snprintf(want, sizeof want, "Name:\t%.10s", comm);
    CHECK(!strncmp(b, want, strlen(want)), "/proc/self/status begins with '%s'", b);
    MUST(lseek(fd[5], 0, SEEK_SET)), EQ(read(fd[5], b, 20), 20);
    CHECK(strchr(b, '-'), "/proc/self/maps cannot be read");
}
static void mutate(void) {
    for (int i = 0; i < 6; i++) close(fd[i]);
    MUST(open("/dev/zero", O_RDWR));
}
