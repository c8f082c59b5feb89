/* Two processes with shared mappings of one file, at different offsets, one of them read-only. */
#include "probe.h"

#define N (8 * PAGE)
static char *p;
static agent a;
static char *q;
static long work(int cmd) {
    if (cmd == 's') {
        int fd = MUST(open("f", O_RDONLY | O_CLOEXEC));
        q = MUST(mmap(NULL, N / 2, PROT_READ, MAP_SHARED, fd, N / 2));
        close(fd);
    }
    if (cmd == 'c') CHECK(!strcmp(q, "hello"), "the child sees '%.20s'", q);
    if (cmd == 'C') CHECK(!strcmp(q, "again"), "the child sees '%.20s', it is not the same file", q);
    if (cmd == 'm') MUST(munmap(q, N / 2));
    return 0;
}
static void setup(void) {
    int fd = MUST(open("f", O_RDWR | O_CREAT | O_CLOEXEC, 0644));
    MUST(ftruncate(fd, N));
    p = MUST(mmap(NULL, N, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    close(fd);
    a = agent_fork(work);
    ask(&a, 's');
    strcpy(p + N / 2, "hello");
}
static void check(void) {
    ask(&a, 'c');
    strcpy(p + N / 2, "again");
    ask(&a, 'C');
}
static void mutate(void) {
    strcpy(p + N / 2, "changed");
    ask(&a, 'm');
    unlink("f");
}
