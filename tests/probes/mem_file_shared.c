/* A shared mapping of a file: the file and the memory are one, before and after. */
#include "probe.h"

#define N (64 * PAGE)
static char *p, *image;
static struct stat st;
static void setup(void) {
    image = map_anon(N);
    fill(image, N, 3);
    write_file("f", image, N);
    int fd = MUST(open("f", O_RDWR | O_CLOEXEC));
    p = MUST(mmap(NULL, N, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    close(fd);
    fill(p + PAGE, PAGE, 11);
    fill(image + PAGE, PAGE, 11);
    MUST(stat("f", &st));
}
static void check(void) {
    CHECK(!memcmp(p, image, N), "the mapping differs");
    want_file("f", image, N);
    struct stat now;
    MUST(stat("f", &now));
    EQ(now.st_ino, st.st_ino);
    strcpy(p + 2 * PAGE, "through the mapping");
    int fd = MUST(open("f", O_RDWR | O_CLOEXEC));
    char buf[32];
    EQ(pread(fd, buf, 20, 2 * PAGE), 20);
    CHECK(!strcmp(buf, "through the mapping"), "what the mapping writes does not reach the file");
    EQ(pwrite(fd, "through the file", 17, 3 * PAGE), 17);
    CHECK(!strcmp(p + 3 * PAGE, "through the file"), "what the file gets does not reach the mapping");
    close(fd);
}
static void mutate(void) {
    fill(p, N, 50);
    MUST(truncate("f", N + 5 * PAGE));
    MUST(msync(p, N, MS_SYNC));
}
