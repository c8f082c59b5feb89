/* A file of /proc half read goes on where it was. */
#include "probe.h"

static int fd;
static char whole[8192];
static ssize_t n;
static void setup(void) {
    int t = MUST(open("/proc/filesystems", O_RDONLY));
    n = MUST(read(t, whole, sizeof whole));
    close(t);
    fd = MUST(open("/proc/filesystems", O_RDONLY));
    char b[10];
    EQ(read(fd, b, 10), 10);
}
static void check(void) {
    EQ(lseek(fd, 0, SEEK_CUR), 10);
    want_data(fd, whole + 10, n - 10);
}
static void mutate(void) { MUST(lseek(fd, 3, SEEK_SET)); }
