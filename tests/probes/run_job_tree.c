/* A shell with a pipeline that never ends: programs that are not ours, in a tree of processes. */
#include "probe.h"

static int in, out;
static pid_t shell;
static long last;
static void setup(void) {
    int a[2], b[2];
    MUST(pipe(a)), MUST(pipe(b));
    shell = fork_child();
    if (!shell) {
        dup2(a[0], 0), dup2(b[1], 1);
        close(a[1]), close(b[0]);
        execl("/bin/sh", "sh", "-c", "n=0; while read x; do n=$((n + x)); echo $n | cat | (read y; echo $y); done", NULL);
        _exit(99);
    }
    close(a[0]), close(b[1]);
    in = a[1], out = b[0];
}
static long step(int by) {
    char line[32];
    size_t n = 0;
    CHECK(dprintf(in, "%d\n", by) > 0, "the shell does not listen");
    do {
        CHECK(readable(out, 5000), "the shell does not answer");
        CHECK(read(out, line + n, 1) == 1, "the shell is gone");
    } while (line[n++] != '\n' && n < 31);
    line[n] = 0;
    return atol(line);
}
static void check(void) {
    EQ(step(3), last + 3), EQ(step(4), last + 7);
    last += 7;
}
static void mutate(void) {
    step(100);
    kill(shell, SIGKILL);
    TRY(waitpid(shell, NULL, 0));
}
