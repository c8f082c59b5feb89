/* An open file with several names, one of them removed since, another written through. */
#include "probe.h"

static int fd;
static void setup(void) {
    fd = MUST(open("a", O_RDWR | O_CREAT, 0644));
    EQ(write(fd, "shared", 6), 6);
    MUST(link("a", "b")), MUST(link("a", "c"));
    MUST(unlink("a"));
}
static void check(void) {
    struct stat f, b, c;
    EQ(access("a", F_OK), -1);
    MUST(fstat(fd, &f)), MUST(stat("b", &b)), MUST(stat("c", &c));
    EQ(f.st_nlink, 2), EQ(f.st_ino, b.st_ino), EQ(b.st_ino, c.st_ino);
    want_file("b", "shared", 6);
    EQ(write(fd, "!", 1), 1);
    want_file("c", "shared!", 7), want_file("b", "shared!", 7);
}
static void mutate(void) {
    write_file("b", "other", 5);
    MUST(unlink("c"));
    write_file("c", "apart", 5);
}
