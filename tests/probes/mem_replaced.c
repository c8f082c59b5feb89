/* A place where something else was mapped since: other kind, other file, other protection. */
#include "probe.h"

static char *p;
static void setup(void) {
    p = map_anon(12 * PAGE);
    fill(p, 12 * PAGE, 12);
    char *d = map_anon(PAGE);
    fill(d, PAGE, 13);
    write_file("f", d, PAGE);
    int fd = MUST(open("f", O_RDONLY | O_CLOEXEC));
    MUST(mmap(p + 2 * PAGE, PAGE, PROT_READ, MAP_PRIVATE | MAP_FIXED, fd, 0));
    close(fd);
    MUST(mmap(p + 4 * PAGE, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
    fill(p + 4 * PAGE, PAGE, 14);
}
static void check(void) {
    want_fill("anonymous", p, 2 * PAGE, 12);
    want_fill("file", p + 2 * PAGE, PAGE, 13);
    want_fill("shared", p + 4 * PAGE, PAGE, 14);
    want_fill("anonymous, later", p + 5 * PAGE, 7 * PAGE, 12 + 5 * PAGE / 8);
    p[0] = p[0] + 1, p[6 * PAGE]++, p[4 * PAGE]++; /* all of it writable as before */
}
static void mutate(void) {
    int fd = MUST(open("f", O_RDONLY | O_CLOEXEC));
    MUST(mmap(p, PAGE, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0));
    close(fd);
    MUST(mmap(p + 2 * PAGE, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
    memset(p + 2 * PAGE, 3, 4 * PAGE);
    MUST(munmap(p + 8 * PAGE, 2 * PAGE));
}
