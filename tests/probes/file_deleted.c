/* A file that was deleted while open: content, offset, and no name. */
#include "probe.h"

static int fd;
static char *data;
#define N (20 * PAGE)
static void setup(void) {
    data = map_anon(N);
    fill(data, N, 23);
    fd = MUST(open("f", O_RDWR | O_CREAT, 0644));
    EQ(write(fd, data, N), N);
    MUST(unlink("f"));
    MUST(lseek(fd, PAGE, SEEK_SET));
}
static void check(void) {
    struct stat st;
    EQ(access("f", F_OK), -1);
    MUST(fstat(fd, &st)), EQ(st.st_nlink, 0), EQ(st.st_size, N), EQ(st.st_mode & 0777, 0644);
    EQ(lseek(fd, 0, SEEK_CUR), PAGE);
    want_data(fd, data + PAGE, N - PAGE);
    EQ(write(fd, "more", 4), 4);
}
static void mutate(void) {
    EQ(pwrite(fd, "changed", 7, 2 * PAGE), 7);
    MUST(ftruncate(fd, 3 * PAGE));
    write_file("f", "another file of that name", 25);
}
