/* Files of the root the sandbox started from, open for reading, and mapped: the program's own and libc. */
#include "probe.h"

static int fd, self;
static char *map;
static char head[256], *copy;
static struct stat st;
static void setup(void) {
    fd = MUST(open("/etc/passwd", O_RDONLY));
    EQ(pread(fd, head, 16, 0), 16);
    MUST(lseek(fd, 7, SEEK_SET));
    self = MUST(open("/proc/self/exe", O_RDONLY));
    MUST(fstat(self, &st));
    map = MUST(mmap(NULL, st.st_size, PROT_READ, MAP_PRIVATE, self, 0));
    copy = malloc(st.st_size);
    memcpy(copy, map, st.st_size);
}
static void check(void) {
    char b[16];
    EQ(lseek(fd, 0, SEEK_CUR), 7);
    EQ(read(fd, b, 4), 4);
    CHECK(!memcmp(b, head + 7, 4), "the file differs");
    CHECK(!memcmp(map, copy, st.st_size), "the mapped program differs");
}
static void mutate(void) {
    MUST(lseek(fd, 0, SEEK_SET));
    MUST(munmap(map, st.st_size));
    map = map_anon(st.st_size);
}
