/* A name that was removed and made anew since: the old file is back, nothing of the new one is in it, and what the
 * old descriptor writes goes to the old file only. */
#include "probe.h"

static int fd;
static struct stat st;
static void setup(void) {
    fd = MUST(open("f", O_RDWR | O_CREAT, 0644));
    EQ(write(fd, "the old one", 11), 11);
    MUST(fstat(fd, &st));
}
static void check(void) {
    struct stat now;
    want_file("f", "the old one", 11);
    MUST(stat("f", &now)), EQ(now.st_ino, st.st_ino);
    EQ(pwrite(fd, "THE", 3, 0), 3);
    want_file("f", "THE old one", 11);
}
static void mutate(void) {
    TRY(unlink("f"));
    write_file("f", "a completely different, longer file", 35);
    EQ(pwrite(fd, "junk", 4, 0), 4);
    close(fd);
    fd = open("f", O_RDWR);
}
