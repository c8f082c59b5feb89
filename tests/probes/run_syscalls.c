/* Threads in a storm of system calls: every result must be right, none may be interrupted. */
#include "run.h"

static void round_of(int i) {
    char b[64];
    int p[2];
    struct timespec t = {0, 50000};
    GOOD(pipe(p) == 0);
    for (int k = 0; k < 50; k++) {
        GOOD(write(p[1], "0123456789", 10) == 10);
        GOOD(read(p[0], b, 10) == 10);
        GOOD(!memcmp(b, "0123456789", 10));
        GOOD(getppid() > 0 || getppid() == 0);
        struct pollfd f = {p[0], POLLIN, 0};
        GOOD(poll(&f, 1, 0) == 0);
        if (k % 10 == i) GOOD(nanosleep(&t, NULL) == 0);
        if (k % 10 == 5) GOOD(poll(&f, 1, 1) == 0);
        GOOD(sched_yield() == 0);
    }
    int fd = open("/dev/null", O_RDWR);
    GOOD(fd >= 0);
    GOOD(close(fd) == 0 && close(p[0]) == 0 && close(p[1]) == 0);
}
static void setup(void) { run_as_threads(3); }
