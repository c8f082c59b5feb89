/* A private mapping of a file: pages of its own, pages of the file, read-only parts. */
#include "probe.h"

#define N (64 * PAGE)
static char *p, *image;
static void setup(void) {
    image = map_anon(N);
    fill(image, N, 3);
    write_file("f", image, N);
    int fd = MUST(open("f", O_RDONLY | O_CLOEXEC));
    p = MUST(mmap(NULL, N, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0));
    close(fd);
    for (unsigned long i = 0; i < N; i += 4 * PAGE) fill(p + i, PAGE, i + 1);
}
static void check(void) {
    for (unsigned long i = 0; i < N; i += PAGE) {
        if (i % (4 * PAGE))
            CHECK(!memcmp(p + i, image + i, PAGE), "page %lu is not the file's", i / PAGE);
        else
            want_fill("a written page", p + i, PAGE, i + 1);
    }
    want_file("f", image, N); /* and what was written never reached the file */
}
static void mutate(void) {
    for (unsigned long i = 0; i < N; i += 3 * PAGE) p[i]++;
    MUST(madvise(p + 8 * PAGE, PAGE, MADV_DONTNEED));
    MUST(mprotect(p + 16 * PAGE, 8 * PAGE, PROT_READ));
}
