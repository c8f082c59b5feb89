/* Memory files that are mapped and open as well, in two processes: what is written here is seen there, whatever was
 * unmapped, closed or sealed meanwhile. One is a memfd, one a file whose name was removed, one is open only in one
 * process and mapped only in the other. */
#include "probe.h"

#define N (4 * PAGE)
static agent a;
static int memory, removed, apart, apart_again;
static char *p[3], *q;
static long work(int cmd) {
    if (cmd == 'o') q = MUST(mmap(NULL, N, PROT_READ | PROT_WRITE, MAP_SHARED, apart, 0)), close(apart);
    if (cmd == 'c') {
        CHECK(!strcmp(p[0], "one") && !strcmp(p[1], "two"), "the child maps '%.8s' and '%.8s'", p[0], p[1]);
        CHECK(!strcmp(q, "three"), "the child maps '%.8s' apart", q);
        strcpy(p[0] + PAGE, "by the child"), strcpy(q + PAGE, "apart");
    }
    if (cmd == 'm') {
        MUST(munmap(p[0], N)), MUST(munmap(p[1], N));
        close(memory), close(removed);
        strcpy(q, "other");
    }
    return 0;
}
static char *map(int fd) { return MUST(mmap(NULL, N, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)); }
static void setup(void) {
    memory = MUST(memfd_create("joined", MFD_CLOEXEC | MFD_ALLOW_SEALING)), apart = MUST(memfd_create("apart", 0));
    removed = MUST(open("gone", O_RDWR | O_CREAT, 0640)), MUST(unlink("gone"));
    MUST(ftruncate(memory, N)), MUST(ftruncate(removed, N)), MUST(ftruncate(apart, N));
    apart_again = MUST(dup(apart));
    p[0] = map(memory), p[1] = map(removed);
    strcpy(p[0], "one"), strcpy(p[1], "two"), EQ(pwrite(apart, "three", 6, 0), 6);
    a = agent_fork(work);
    ask(&a, 'o');
}
static void joined(const char *what, int fd, const char *mapped, long offset, const char *text) {
    char buf[32] = {0};
    EQ(pread(fd, buf, strlen(text), offset), (long)strlen(text));
    CHECK(!strcmp(buf, text), "%s: by the descriptor there is '%s', not '%s'", what, buf, text);
    if (!mapped) return;
    EQ(pwrite(fd, "by descriptor", 14, 2 * PAGE), 14);
    CHECK(!strcmp(mapped + 2 * PAGE, "by descriptor"), "%s: what is mapped is not what is open", what);
}
static void check(void) {
    struct stat st;
    ask(&a, 'c');
    joined("memfd", memory, p[0], PAGE, "by the child"), joined("memfd", memory, p[0], 0, "one");
    joined("removed", removed, p[1], 0, "two"), joined("apart", apart_again, NULL, PAGE, "apart");
    MUST(fstat(removed, &st)), EQ(st.st_nlink, 0), EQ(st.st_mode & 07777, 0640), EQ(st.st_size, (long)N);
    EQ(fcntl(memory, F_GET_SEALS), 0), EQ(fcntl(apart, F_GET_SEALS), F_SEAL_SEAL);
}
static void mutate(void) {
    ask(&a, 'm');
    strcpy(p[0], "changed"), strcpy(p[1], "changed");
    MUST(munmap(p[0], N)), MUST(munmap(p[1], N));
    MUST(fcntl(memory, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK)); /* cannot be taken back in place */
    MUST(ftruncate(removed, PAGE)), MUST(fchmod(removed, 0600));
    MUST(pwrite(apart, "3", 1, 0));
    close(apart);
}
