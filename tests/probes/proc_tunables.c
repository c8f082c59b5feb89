/* What /proc/self sets: oom_score_adj, coredump_filter; and the personality. */
#include "probe.h"
#include <sys/personality.h>

static void put(const char *path, const char *v) {
    int fd = MUST(open(path, O_WRONLY | O_CLOEXEC));
    MUST(write(fd, v, strlen(v)));
    close(fd);
}
static void want(const char *path, const char *v) {
    char buf[64] = {0};
    int fd = MUST(open(path, O_RDONLY | O_CLOEXEC));
    MUST(read(fd, buf, sizeof buf - 1));
    close(fd);
    buf[strcspn(buf, "\n")] = 0;
    CHECK(!strcmp(buf, v), "%s is %s, not %s", path, buf, v);
}
static void setup(void) {
    put("/proc/self/oom_score_adj", "321");
    put("/proc/self/coredump_filter", "0x11");
    MUST(personality(PER_LINUX | ADDR_NO_RANDOMIZE));
}
static void check(void) {
    want("/proc/self/oom_score_adj", "321");
    want("/proc/self/coredump_filter", "00000011");
    EQ(personality(0xffffffff), PER_LINUX | ADDR_NO_RANDOMIZE);
}
static void mutate(void) {
    put("/proc/self/oom_score_adj", "777");
    put("/proc/self/coredump_filter", "0x7");
    MUST(personality(PER_LINUX));
}
