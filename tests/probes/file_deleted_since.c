/* A file deleted since, still open: it is back under its name, and descriptor and name are the same file. */
#include "probe.h"

static int fd;
static struct stat st;
static void setup(void) {
    fd = MUST(open("f", O_RDWR | O_CREAT, 0640));
    EQ(write(fd, "content", 7), 7);
    MUST(fstat(fd, &st));
}
static void check(void) {
    struct stat now;
    want_file("f", "content", 7);
    MUST(stat("f", &now)), EQ(now.st_ino, st.st_ino), EQ(now.st_mode, st.st_mode);
    MUST(fstat(fd, &now)), EQ(now.st_ino, st.st_ino), EQ(now.st_nlink, 1);
    EQ(write(fd, "!", 1), 1);
    want_file("f", "content!", 8);
}
static void mutate(void) {
    MUST(unlink("f"));
    EQ(write(fd, "junk", 4), 4);
}
