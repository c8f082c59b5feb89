/* The probe itself exec'd (itself) before: arguments, environment, auxiliary vector, program. */
#include "probe.h"
#include <sys/auxv.h>

static char exe[PATH_MAX], cmdline[4096], auxv[4096];
static ssize_t cmdline_n, auxv_n;
static ssize_t slurp(const char *path, char *buf, size_t n) {
    int fd = MUST(open(path, O_RDONLY | O_CLOEXEC));
    ssize_t r = MUST(read(fd, buf, n));
    close(fd);
    return r;
}
static void setup(void) {
    if (!getenv("PROBE_TWICE")) {
        setenv("PROBE_TWICE", "yes", 1);
        MUST(execv("/proc/self/exe", probe_argv));
    }
    MUST(readlink("/proc/self/exe", exe, sizeof exe - 1));
    cmdline_n = slurp("/proc/self/cmdline", cmdline, sizeof cmdline);
    auxv_n = slurp("/proc/self/auxv", auxv, sizeof auxv);
    MUST(prctl(PR_SET_NAME, "twice"));
}
static void check(void) {
    char buf[PATH_MAX] = {0};
    MUST(readlink("/proc/self/exe", buf, sizeof buf - 1));
    CHECK(!strcmp(buf, exe), "/proc/self/exe is %s, not %s", buf, exe);
    EQ(slurp("/proc/self/cmdline", buf, sizeof buf), cmdline_n);
    CHECK(!memcmp(buf, cmdline, cmdline_n), "the arguments differ");
    EQ(slurp("/proc/self/auxv", buf, sizeof buf), auxv_n);
    CHECK(!memcmp(buf, auxv, auxv_n), "the auxiliary vector differs");
    slurp("/proc/self/comm", buf, 6);
    CHECK(!memcmp(buf, "twice\n", 6), "the name is %.5s", buf);
    CHECK(getauxval(AT_SYSINFO_EHDR) != 0 && getenv("PROBE_TWICE"), "no vdso or no environment");
}
static void mutate(void) {
    MUST(prctl(PR_SET_NAME, "else"));
    probe_argv[0][0] ^= 1; /* as servers do to show what they are doing */
}
