/* Resource limits, soft and hard, of a process and of its child. */
#include "probe.h"

static struct rlimit want[RLIM_NLIMITS];
static agent a;
static long work(int cmd) {
    struct rlimit l;
    if (cmd == 's')
        for (int i = 0; i < RLIM_NLIMITS; i++) {
            MUST(getrlimit(i, &l));
            if (i == RLIMIT_NOFILE) l.rlim_cur = 333, l.rlim_max = l.rlim_max < 777 ? l.rlim_max : 777;
            if (i == RLIMIT_CORE) l.rlim_cur = 0;
            if (i == RLIMIT_STACK) l.rlim_cur = 3 << 20;
            if (i == RLIMIT_FSIZE) l.rlim_cur = 123456789;
            MUST(setrlimit(i, &l));
            want[i] = l;
        }
    if (cmd == 'c')
        for (int i = 0; i < RLIM_NLIMITS; i++) {
            MUST(getrlimit(i, &l));
            CHECK(l.rlim_cur == want[i].rlim_cur && l.rlim_max == want[i].rlim_max, "limit %d is %ld/%ld, not %ld/%ld", i, (long)l.rlim_cur, (long)l.rlim_max, (long)want[i].rlim_cur, (long)want[i].rlim_max);
        }
    if (cmd == 'm') {
        l = (struct rlimit){100, 200}; /* the hard limit too: without privileges it cannot be raised again from inside */
        MUST(setrlimit(RLIMIT_NOFILE, &l));
        l = (struct rlimit){1 << 20, 2 << 20};
        MUST(setrlimit(RLIMIT_STACK, &l));
    }
    return 0;
}
static void setup(void) {
    a = agent_fork(work);
    ask(&a, 's');
    for (int i = 0; i < RLIM_NLIMITS; i++) MUST(getrlimit(i, &want[i]));
}
static void check(void) { ask(&a, 'c'), work('c'); }
static void mutate(void) { ask(&a, 'm'), work('m'); }
