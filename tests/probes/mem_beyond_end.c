/* A file mapping that reaches beyond the end of its file: SIGBUS there, data before. */
#include "probe.h"

static char *p;
static sigjmp_buf out;
static void bus(int s) { siglongjmp(out, s); }
static int touch(char *at) {
    int r = sigsetjmp(out, 1);
    if (!r) (void)*(volatile char *)at;
    return r;
}
static void setup(void) {
    char *data = map_anon(2 * PAGE);
    fill(data, 2 * PAGE, 8);
    write_file("f", data, 2 * PAGE);
    int fd = MUST(open("f", O_RDWR | O_CLOEXEC));
    p = MUST(mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    close(fd);
    signal(SIGBUS, bus);
}
static void check(void) {
    want_fill("the data", p, 2 * PAGE, 8);
    EQ(touch(p + 2 * PAGE), SIGBUS), EQ(touch(p + PAGE), 0);
}
static void mutate(void) { MUST(truncate("f", 4 * PAGE)), memset(p + PAGE, 1, 3 * PAGE); }
