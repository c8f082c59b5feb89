/* A sparse file of 300 GB with data far out, and an offset beyond 4 GB. */
#include "probe.h"

#define FAR (300LL << 30)
static int fd;
static void setup(void) {
    fd = MUST(open("f", O_RDWR | O_CREAT, 0644));
    EQ(pwrite(fd, "start", 5, 0), 5), EQ(pwrite(fd, "far out", 7, FAR), 7);
    MUST(lseek(fd, FAR + 4, SEEK_SET));
}
static void check(void) {
    struct stat st;
    EQ(lseek(fd, 0, SEEK_CUR), FAR + 4);
    MUST(fstat(fd, &st)), EQ(st.st_size, FAR + 7);
    CHECK(st.st_blocks < 4096, "the hole is filled: %ld blocks", (long)st.st_blocks);
    want_data(fd, "out", 3);
    char b[5];
    EQ(pread(fd, b, 5, 0), 5), CHECK(!memcmp(b, "start", 5), "the start is %.5s", b);
}
static void mutate(void) {
    MUST(ftruncate(fd, 10LL << 30));
    EQ(pwrite(fd, "middle", 6, 5LL << 30), 6);
}
