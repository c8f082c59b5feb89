/* The stack: deep frames of a blocked thread and of the main thread's past, and that it can grow. */
#include "probe.h"

static agent a;
static int gate[2];
static pid_t kid;
static int *result;

__attribute__((noinline)) static int deep(int n, int base) {
    volatile uint64_t room[500];
    for (int i = 0; i < 500; i++) room[i] = mix(base + n * 500 + i);
    int r = 0;
    char c;
    if (n) r = deep(n - 1, base);
    else
        while (read(gate[0], &c, 1) < 0) {
        }
    for (int i = 0; i < 500; i++)
        if (room[i] != mix(base + n * 500 + i)) r++;
    return r;
}
static void setup(void) {
    (void)a;
    result = map_shared(PAGE);
    MUST(pipe(gate));
    kid = fork_child();
    if (!kid) {
        result[0] = 1;
        int bad = deep(300, 7); /* 1.2 MB, blocked at the bottom */
        bad += deep(900, 8) && 0;
        result[1] = bad ? -1 : 1;
        _exit(0);
    }
    CHECK(WAIT_FOR(result[0], 1000), "the child did not start");
    wait_state(kid, 'S');
}
static void check(void) {
    EQ(result[1], 0);
    EQ(write(gate[1], "xx", 2), 2); /* up again, and down three times as deep */
    CHECK(WAIT_FOR(result[1], 2000), "the child did not come up");
    EQ(result[1], 1);
}
static void mutate(void) {
    TRY(write(gate[1], "xx", 2));
    WAIT_FOR(result[1], 2000);
}
