/* A deleted file opened a second time by way of /proc/self/fd: two open files of one inode without a name. */
#include "probe.h"

static int one, two;
static void setup(void) {
    one = MUST(open("f", O_RDWR | O_CREAT, 0644));
    EQ(write(one, "0123456789", 10), 10);
    MUST(unlink("f"));
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", one);
    two = MUST(open(path, O_RDONLY));
    MUST(lseek(two, 4, SEEK_SET)), MUST(lseek(one, 2, SEEK_SET));
}
static void check(void) {
    struct stat a, b;
    MUST(fstat(one, &a)), MUST(fstat(two, &b));
    EQ(a.st_ino, b.st_ino), EQ(a.st_nlink, 0);
    EQ(lseek(one, 0, SEEK_CUR), 2), EQ(lseek(two, 0, SEEK_CUR), 4);
    EQ(write(one, "XXXX", 4), 4);
    want_data(two, "XX6789", 6);
}
static void mutate(void) {
    EQ(write(one, "junk", 4), 4);
    MUST(ftruncate(one, 3));
    close(two);
}
