/* A process that forks children, each of which checks its memory and ends with a status. */
#include "run.h"

static uint64_t data[8192];
static void round_of(int i) {
    int st, code = run->rounds[i] % 200 + 1;
    pid_t p = fork();
    GOOD(p >= 0);
    if (!p) {
        for (int k = 0; k < 8192; k += 64)
            if (data[k] != mix(9 + k)) _exit(255);
        _exit(code);
    }
    GOOD(waitpid(p, &st, 0) == p);
    GOOD(WIFEXITED(st) && WEXITSTATUS(st) == code);
}
static void setup(void) {
    fill(data, sizeof data, 9);
    run_as_processes(2);
}
