/* A directory in the middle of being read: the position, and what is still to come. */
#include "probe.h"

static DIR *d;
static char first[200][16], rest[200][16];
static int firsts, rests;
static void setup(void) {
    char n[32];
    MUST(mkdir("d", 0755));
    for (int i = 0; i < 150; i++) snprintf(n, sizeof n, "d/file%03d", i), write_file(n, "", 0);
    d = opendir("d");
    CHECK(d, "opendir");
    for (int i = 0; i < 50; i++) {
        struct dirent *e = readdir(d);
        snprintf(first[firsts++], 16, "%.15s", e->d_name);
    }
    /* and a raw one, whose position the kernel holds: the rest of it in reference */
    int raw = MUST(open("d", O_RDONLY | O_DIRECTORY));
    char buf[1024];
    long n1 = MUST(syscall(SYS_getdents64, raw, buf, sizeof buf));
    (void)n1;
    MUST(dup2(raw, 190)), close(raw);
    raw = MUST(open("d", O_RDONLY | O_DIRECTORY));
    MUST(syscall(SYS_getdents64, raw, buf, sizeof buf));
    for (long n2; (n2 = MUST(syscall(SYS_getdents64, raw, buf, sizeof buf))) > 0;)
        for (long o = 0; o < n2; o += *(unsigned short *)(buf + o + 16)) snprintf(rest[rests++], 16, "%.15s", buf + o + 19);
    close(raw);
}
static void check(void) {
    char buf[1024];
    int k = 0;
    for (long n; (n = MUST(syscall(SYS_getdents64, 190, buf, sizeof buf))) > 0;)
        for (long o = 0; o < n; o += *(unsigned short *)(buf + o + 16), k++)
            CHECK(k < rests && !strcmp(rest[k], buf + o + 19), "entry %d of the rest is %s, not %s", k, buf + o + 19, k < rests ? rest[k] : "the end");
    EQ(k, rests);
    int n = firsts;
    for (struct dirent *e; (e = readdir(d)); n++)
        for (int i = 0; i < firsts; i++) CHECK(strcmp(first[i], e->d_name), "%s comes twice", e->d_name);
    EQ(n, 152);
}
static void mutate(void) {
    char n[32];
    while (readdir(d)) {
    }
    MUST(lseek(190, 0, SEEK_SET));
    for (int i = 100; i < 150; i++) snprintf(n, sizeof n, "d/file%03d", i), TRY(unlink(n));
}
