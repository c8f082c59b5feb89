/* A file that never had a name (O_TMPFILE), and can be given one. */
#include "probe.h"

static int fd;
static void setup(void) {
    fd = open(".", O_TMPFILE | O_RDWR, 0640);
    if (fd < 0 && errno == EOPNOTSUPP) skip("the filesystem has no O_TMPFILE");
    MUST(fd);
    EQ(write(fd, "nameless", 8), 8);
}
static void check(void) {
    char buf[16], path[64];
    struct stat st;
    MUST(fstat(fd, &st)), EQ(st.st_nlink, 0), EQ(st.st_size, 8), EQ(st.st_mode & 0777, 0640);
    EQ(lseek(fd, 0, SEEK_CUR), 8);
    EQ(pread(fd, buf, 16, 0), 8);
    CHECK(!memcmp(buf, "nameless", 8), "it holds %.8s", buf);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    MUST(linkat(AT_FDCWD, path, AT_FDCWD, "named", AT_SYMLINK_FOLLOW));
    want_file("named", "nameless", 8);
}
static void mutate(void) {
    EQ(write(fd, "more", 4), 4);
    MUST(fchmod(fd, 0600));
}
