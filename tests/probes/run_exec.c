/* A process that starts programs (vfork and exec), one after the other, and reads what they say. */
#include "run.h"

static void round_of(int i) {
    (void)i;
    int p[2], st;
    char b[16] = {0};
    GOOD(pipe(p) == 0);
    pid_t c = vfork();
    if (!c) {
        dup2(p[1], 1);
        execl("/bin/sh", "sh", "-c", "echo hello; exit 3", NULL);
        _exit(99);
    }
    close(p[1]);
    size_t n = 0;
    for (ssize_t r; (r = read(p[0], b + n, 15 - n)) > 0;) n += r;
    GOOD(!strcmp(b, "hello\n"));
    close(p[0]);
    GOOD(waitpid(c, &st, 0) == c);
    GOOD(WIFEXITED(st) && WEXITSTATUS(st) == 3);
}
static void setup(void) { run_as_processes(1); }
