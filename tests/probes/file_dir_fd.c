/* Directories held open: one removed, one to work relative to, one renamed since. */
#include "probe.h"

static int gone, base;
static void setup(void) {
    MUST(mkdir("gone", 0755)), MUST(mkdir("base", 0755));
    gone = MUST(open("gone", O_RDONLY | O_DIRECTORY)), base = MUST(open("base", O_PATH | O_DIRECTORY));
    MUST(rmdir("gone"));
}
static void check(void) {
    EQ(openat(gone, "x", O_WRONLY | O_CREAT, 0644), -1), EQ(errno, ENOENT);
    int fd = MUST(openat(base, "made", O_WRONLY | O_CREAT | O_EXCL, 0644));
    close(fd);
    EQ(access("base/made", F_OK), 0);
    EQ(access("gone", F_OK), -1);
}
static void mutate(void) {
    MUST(rename("base", "moved"));
    MUST(mkdir("base", 0755)), MUST(mkdir("gone", 0755));
    MUST(dup2(base, gone));
}
