/* Inode numbers, modification and change times of files stay what they were. */
#include "probe.h"

#define N 5
static struct stat want[N];
static const char *name[N] = {"plain", "dir", "link", "fifo", "open"};
static int fd;
static void setup(void) {
    write_file("plain", "x", 1), MUST(mkdir("dir", 0755)), MUST(symlink("plain", "link")), MUST(mkfifo("fifo", 0600));
    fd = MUST(open("open", O_RDWR | O_CREAT, 0644));
    EQ(write(fd, "x", 1), 1);
    struct timespec t[2] = {{1000000000, 123456789}, {1100000000, 987654321}};
    MUST(utimensat(AT_FDCWD, "plain", t, 0)), MUST(utimensat(AT_FDCWD, "dir", t, 0));
    sleep_ms(20);
    for (int i = 0; i < N; i++) MUST(lstat(name[i], &want[i]));
    sleep_ms(20);
}
static void same(const char *n, const struct stat *w, const struct stat *g) {
    CHECK(g->st_ino == w->st_ino, "%s: inode %lu, not %lu", n, g->st_ino, w->st_ino);
    CHECK(!memcmp(&g->st_mtim, &w->st_mtim, sizeof g->st_mtim), "%s: modified at %ld.%09ld, not %ld.%09ld", n, g->st_mtim.tv_sec, g->st_mtim.tv_nsec, w->st_mtim.tv_sec, w->st_mtim.tv_nsec);
    CHECK(!memcmp(&g->st_ctim, &w->st_ctim, sizeof g->st_ctim), "%s: changed at %ld.%09ld, not %ld.%09ld", n, g->st_ctim.tv_sec, g->st_ctim.tv_nsec, w->st_ctim.tv_sec, w->st_ctim.tv_nsec);
}
static void check(void) {
    struct stat st;
    for (int i = 0; i < N; i++) {
        MUST(lstat(name[i], &st));
        same(name[i], &want[i], &st);
    }
    MUST(fstat(fd, &st));
    same("the open one", &want[4], &st);
}
static void mutate(void) {
    for (int i = 0; i < N; i++)
        if (i != 2) MUST(chmod(name[i], 0700));
    EQ(write(fd, "y", 1), 1);
    write_file("dir/new", "", 0);
}
