/* POSIX shared memory: by name, mapped in two processes. */
#include "probe.h"

#define N (16 * PAGE)
static char name[64], *p;
static agent a;
static long work(int cmd) {
    if (cmd == 'c') want_fill("seen from the child", p, N, 41);
    if (cmd == 'w') p[0] = 7;
    return 0;
}
static void setup(void) {
    snprintf(name, sizeof name, "/probe-shm-%d", getpid());
    int fd = MUST(shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600));
    MUST(ftruncate(fd, N));
    p = MUST(mmap(NULL, N, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    close(fd);
    fill(p, N, 41);
    a = agent_fork(work);
}
static void check(void) {
    want_fill("the mapping", p, N, 41);
    ask(&a, 'c'), ask(&a, 'w');
    EQ(p[0], 7);
    int fd = MUST(shm_open(name, O_RDONLY, 0));
    char c;
    EQ(read(fd, &c, 1), 1), EQ(c, 7); /* the name leads to the same object */
    close(fd);
    shm_unlink(name);
}
static void mutate(void) {
    fill(p, N, 42);
    TRY(shm_unlink(name));
}
