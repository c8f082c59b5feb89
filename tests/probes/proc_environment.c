/* The environment a program changed, and its title overwritten in place. */
#include "probe.h"

extern char **environ;
static char title[64];
static void setup(void) {
    setenv("PROBE_NEW", "value", 1), unsetenv("HOME");
    for (int i = 0; i < 200; i++) {
        char n[32];
        snprintf(n, sizeof n, "PROBE_%d", i);
        setenv(n, n, 1);
    }
    size_t room = strlen(probe_argv[0]);
    memset(probe_argv[0], 'T', room);
    int fd = MUST(open("/proc/self/cmdline", O_RDONLY));
    MUST(read(fd, title, sizeof title - 1));
    close(fd);
}
static void check(void) {
    char now[64] = {0};
    CHECK(getenv("PROBE_NEW") && !strcmp(getenv("PROBE_NEW"), "value") && !getenv("HOME"), "the environment differs");
    CHECK(getenv("PROBE_199") && !strcmp(getenv("PROBE_199"), "PROBE_199"), "the environment differs");
    int fd = MUST(open("/proc/self/cmdline", O_RDONLY));
    MUST(read(fd, now, sizeof now - 1));
    close(fd);
    CHECK(!strcmp(now, title) && now[0] == 'T', "the title is '%s'", now);
}
static void mutate(void) {
    clearenv();
    memset(probe_argv[0], 'X', strlen(probe_argv[0]));
}
