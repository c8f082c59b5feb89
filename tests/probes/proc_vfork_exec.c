/* A child made by vfork and exec: another program, with its arguments and environment. */
#include "probe.h"

static pid_t child;
static char exe[PATH_MAX];
static void read_proc(const char *what, char *buf, size_t size) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/%s", child, what);
    int fd = MUST(open(path, O_RDONLY | O_CLOEXEC));
    memset(buf, 0, size);
    MUST(read(fd, buf, size - 1));
    close(fd);
}
static void setup(void) {
    char *args[] = {"sleep", "86400", NULL}, *env[] = {"PROBE=yes", "X=1", NULL};
    child = vfork();
    if (!child) {
        execve("/bin/sleep", args, env);
        execve("/usr/bin/sleep", args, env);
        _exit(9);
    }
    owned_child(child);
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/exe", child);
    MUST(readlink(path, exe, sizeof exe - 1));
    sleep_ms(20);
    wait_state(child, 'S');
}
static void check(void) {
    char buf[PATH_MAX] = {0}, path[64];
    wait_state(child, 'S');
    snprintf(path, sizeof path, "/proc/%d/exe", child);
    MUST(readlink(path, buf, sizeof buf - 1));
    CHECK(!strcmp(buf, exe), "the program is %s, not %s", buf, exe);
    read_proc("cmdline", buf, sizeof buf);
    CHECK(!memcmp(buf, "sleep\00086400", 12), "the arguments are %s...", buf);
    read_proc("environ", buf, sizeof buf);
    CHECK(!memcmp(buf, "PROBE=yes\0X=1", 14), "the environment is %s...", buf);
    read_proc("comm", buf, sizeof buf);
    CHECK(!strcmp(buf, "sleep\n"), "the name is %s", buf);
}
static void mutate(void) {
    kill(child, SIGKILL);
    TRY(waitpid(child, NULL, 0));
}
