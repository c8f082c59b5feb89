/* Open files whose names, or whose directories' names, changed before and since. */
#include "probe.h"

static int fd, dir;
static void want_link(int d, const char *tail) {
    char l[32], target[PATH_MAX] = {0};
    snprintf(l, sizeof l, "/proc/self/fd/%d", d);
    MUST(readlink(l, target, sizeof target - 1));
    size_t n = strlen(target), k = strlen(tail);
    CHECK(n >= k && !strcmp(target + n - k, tail), "descriptor %d is %s, not ...%s", d, target, tail);
}
static void setup(void) {
    MUST(mkdir("d", 0755)), MUST(mkdir("d/sub", 0755));
    fd = MUST(open("d/sub/a", O_RDWR | O_CREAT, 0644));
    dir = MUST(open("d/sub", O_RDONLY | O_DIRECTORY));
    EQ(write(fd, "abc", 3), 3);
    MUST(rename("d/sub/a", "d/sub/b"));
    MUST(rename("d", "e"));
}
static void check(void) {
    want_link(fd, "/e/sub/b"), want_link(dir, "/e/sub");
    want_file("e/sub/b", "abc", 3);
    EQ(write(fd, "d", 1), 1);
    want_file("e/sub/b", "abcd", 4);
    EQ(faccessat(dir, "b", F_OK, 0), 0), EQ(access("d", F_OK), -1), EQ(access("f", F_OK), -1);
}
static void mutate(void) {
    MUST(rename("e/sub/b", "e/c"));
    MUST(rename("e", "f"));
    write_file("f/sub/b", "other", 5);
}
