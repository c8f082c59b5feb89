/* A directory tree: kinds, content, links, modes, extended attributes, holes. */
#include "probe.h"
#include <sys/xattr.h>

static void setup(void) {
    MUST(mkdir("t", 0711)), MUST(mkdir("t/d", 0755)), MUST(mkdir("t/empty", 0755)), MUST(chmod("t/empty", 01777));
    write_file("t/a", "aaa", 3), MUST(chmod("t/a", 0604));
    MUST(link("t/a", "t/d/hard")), MUST(symlink("../a", "t/d/soft")), MUST(symlink("nowhere", "t/dangling"));
    MUST(mkfifo("t/fifo", 0600)), MUST(chmod("t/fifo", 0620));
    TRY(setxattr("t/a", "user.probe", "value", 5, 0));
    int fd = MUST(open("t/sparse", O_RDWR | O_CREAT, 0644));
    EQ(pwrite(fd, "end", 3, 10 << 20), 3);
    close(fd);
}
static void check(void) {
    struct stat st, s2;
    char buf[32] = {0};
    MUST(stat("t", &st)), EQ(st.st_mode & 07777, 0711);
    MUST(stat("t/empty", &st)), EQ(st.st_mode & 07777, 01777);
    MUST(stat("t/a", &st)), EQ(st.st_mode & 07777, 0604), EQ(st.st_nlink, 2);
    MUST(stat("t/d/hard", &s2)), EQ(st.st_ino, s2.st_ino);
    MUST(readlink("t/d/soft", buf, sizeof buf)), CHECK(!strcmp(buf, "../a"), "the link leads to %s", buf);
    MUST(lstat("t/dangling", &st)), CHECK(S_ISLNK(st.st_mode), "not a link");
    MUST(stat("t/fifo", &st)), CHECK(S_ISFIFO(st.st_mode), "not a FIFO"), EQ(st.st_mode & 0777, 0620);
    MUST(stat("t/sparse", &st)), EQ(st.st_size, (10 << 20) + 3);
    CHECK(st.st_blocks < 4096, "the hole is filled: %ld blocks", (long)st.st_blocks);
    want_file("t/d/hard", "aaa", 3);
    memset(buf, 0, sizeof buf);
    if (getxattr("t/a", "user.probe", buf, sizeof buf) != 5 || memcmp(buf, "value", 5))
        CHECK(errno == ENOTSUP || errno == EOPNOTSUPP, "the extended attribute is '%s' (%s)", buf, strerror(errno));
    EQ(access("t/new", F_OK), -1), EQ(access("t/d2", F_OK), -1);
}
static void mutate(void) {
    MUST(rename("t/d", "t/d2")), MUST(unlink("t/a")), MUST(mkdir("t/a", 0755)), MUST(unlink("t/dangling"));
    write_file("t/new", "new", 3), write_file("t/d2/hard", "changed", 7), write_file("t/sparse", "short", 5);
    MUST(chmod("t/empty", 0)), MUST(rmdir("t/empty")), MUST(unlink("t/fifo")), write_file("t/fifo", "no fifo", 7);
}
