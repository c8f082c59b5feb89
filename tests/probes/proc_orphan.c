/* A process whose parent died: its new parent is still its parent. */
#include "probe.h"

static pid_t *orphan, parent;
static void setup(void) {
    orphan = map_shared(PAGE);
    pid_t p = MUST(fork());
    if (!p) {
        pid_t o = fork();
        if (!o) {
            while (getppid() == orphan[1]) sleep_ms(1);
            orphan[0] = getpid();
            for (;;) pause();
        }
        _exit(0);
    }
    orphan[1] = p;
    MUST(waitpid(p, NULL, 0));
    CHECK(WAIT_FOR(orphan[0], 2000), "no orphan");
    owned_child(orphan[0]);
    wait_state(orphan[0], 'S');
    parent = stat_field(orphan[0], 4);
}
static void check(void) {
    wait_state(orphan[0], 'S');
    EQ(stat_field(orphan[0], 4), parent);
}
static void mutate(void) {
    kill(orphan[0], SIGKILL);
    WAIT_FOR(task_state(orphan[0]) == 0, 500);
}
