/* A memfd: content, size, seals, name, shared by descriptor and mapping. */
#include "probe.h"

#define N (32 * PAGE)
static int fd, sealed;
static char *p;
static void setup(void) {
    fd = MUST(memfd_create("a memory file", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    MUST(ftruncate(fd, N));
    p = MUST(mmap(NULL, N, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    fill(p, N, 31);
    MUST(lseek(fd, 1234, SEEK_SET));
    sealed = MUST(memfd_create("sealed", MFD_ALLOW_SEALING));
    EQ(write(sealed, "constant", 8), 8);
    MUST(fcntl(sealed, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK));
}
static void check(void) {
    char buf[64] = {0};
    struct stat st;
    want_fill("the mapping", p, N, 31);
    MUST(fstat(fd, &st)), EQ(st.st_size, N);
    EQ(lseek(fd, 0, SEEK_CUR), 1234);
    EQ(pread(fd, buf, 8, 8 * 100), 8);
    CHECK(!memcmp(buf, p + 800, 8), "descriptor and mapping differ");
    EQ(fcntl(fd, F_GET_SEALS), 0), EQ(fcntl(sealed, F_GET_SEALS), F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK);
    EQ(pread(sealed, buf, 8, 0), 8);
    CHECK(!memcmp(buf, "constant", 8), "the sealed one holds %.8s", buf);
    EQ(write(sealed, "x", 1), -1);
    EQ(fcntl(fd, F_GETFD), FD_CLOEXEC), EQ(fcntl(sealed, F_GETFD), 0);
    memset(buf, 0, sizeof buf);
    char link[32];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    MUST(readlink(link, buf, sizeof buf - 1));
    CHECK(!strcmp(buf, "/memfd:a memory file (deleted)"), "its name is %s", buf);
}
static void mutate(void) {
    fill(p, N, 32);
    MUST(ftruncate(fd, N + PAGE));
    MUST(lseek(fd, 0, SEEK_SET));
    MUST(fcntl(fd, F_ADD_SEALS, F_SEAL_GROW)); /* cannot be taken back in place */
}
