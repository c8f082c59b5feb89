/* User and group ids, real, effective, saved and of the filesystem; dropping them is undone. */
#include "probe.h"
#include <sys/fsuid.h>

static agent a, b;
static long work(int cmd) {
    uid_t r, e, s;
    switch (cmd) {
    case 's':
        MUST(setresgid(5, 6, 7)), setfsgid(8);
        MUST(setresuid(0, 0, 33)), setfsuid(44);
        break;
    case 'c':
        MUST(getresuid(&r, &e, &s)), EQ(r, 0), EQ(e, 0), EQ(s, 33), EQ(setfsuid(-1), 44);
        MUST(getresgid(&r, &e, &s)), EQ(r, 5), EQ(e, 6), EQ(s, 7), EQ(setfsgid(-1), 8);
        break;
    case 'm': MUST(setresgid(100, 100, 100)), MUST(setresuid(1, 1, 1)); break; /* for good */
    case 'd': MUST(setresgid(1000, 1000, 1000)), MUST(setresuid(1000, 1000, 1000)); break;
    case 'D':
        MUST(getresuid(&r, &e, &s)), EQ(r, 1000), EQ(e, 1000), EQ(s, 1000);
        EQ(setuid(0), -1);
        EQ(strtoull(status_line(getpid(), "CapEff"), NULL, 16), 0);
    }
    return 0;
}
static void setup(void) {
    a = agent_fork(work), b = agent_fork(work);
    ask(&a, 's'), ask(&b, 'd');
}
static void check(void) { ask(&a, 'c'), ask(&b, 'D'); }
static void mutate(void) { ask(&a, 'm'); }
