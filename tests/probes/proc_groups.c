/* Supplementary groups. */
#include "probe.h"
#include <grp.h>

static agent a;
static const gid_t want[] = {0, 4, 24, 27, 46, 1000, 60000};
static long work(int cmd) {
    gid_t g[64], other[] = {5};
    if (cmd == 's' && setgroups(7, want) < 0) return errno;
    if (cmd == 'm') MUST(setgroups(1, other));
    if (cmd == 'c') {
        EQ(getgroups(64, g), 7);
        for (int i = 0; i < 7; i++) EQ(g[i], want[i]);
    }
    return 0;
}
static void setup(void) {
    a = agent_fork(work);
    if (ask(&a, 's')) skip("setgroups is not allowed here");
}
static void check(void) { ask(&a, 'c'); }
static void mutate(void) { ask(&a, 'm'); }
