/* Mappings of a deleted file: shared and private. */
#include "probe.h"

#define N (16 * PAGE)
static char *s, *p;
static void setup(void) {
    int fd = MUST(open("f", O_RDWR | O_CREAT | O_CLOEXEC, 0644));
    MUST(ftruncate(fd, N));
    s = MUST(mmap(NULL, N, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    fill(s, N, 21);
    p = MUST(mmap(NULL, N, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0));
    p[0] = p[0]; /* a page of its own */
    fill(p + PAGE, PAGE, 22);
    close(fd);
    MUST(unlink("f"));
}
static void check(void) {
    want_fill("the shared mapping", s, N, 21);
    want_fill("a written page of the private mapping", p + PAGE, PAGE, 22);
    CHECK(!memcmp(p + 2 * PAGE, s + 2 * PAGE, N - 2 * PAGE), "the private mapping does not show the file");
    EQ(access("f", F_OK), -1);
}
static void mutate(void) {
    fill(s, N, 1), fill(p, N, 2);
    write_file("f", "new", 3);
}
