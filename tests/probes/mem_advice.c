/* Advice that stays with a mapping: not for children, wiped for children, not in core files, huge pages. */
#include "probe.h"

static char *p;
static void setup(void) {
    char *q = map_anon(4UL << 20);
    p = (char *)(((uintptr_t)q + (2 << 20) - 1) & ~((2UL << 20) - 1));
    fill(p, 16 * PAGE, 6);
    MUST(madvise(p, PAGE, MADV_DONTFORK));
    MUST(madvise(p + 2 * PAGE, PAGE, MADV_WIPEONFORK));
    MUST(madvise(p + 4 * PAGE, PAGE, MADV_DONTDUMP));
    MUST(madvise(p + 6 * PAGE, PAGE, MADV_SEQUENTIAL));
    TRY(madvise(p + 8 * PAGE, PAGE, MADV_HUGEPAGE));
    TRY(madvise(p + 10 * PAGE, PAGE, MADV_MERGEABLE));
}
static void want_flag(int page, const char *flag, int set) {
    FILE *f = fopen("/proc/self/smaps", "re");
    CHECK(f, "no smaps");
    char line[512];
    unsigned long from = 0, to = 0, at = (unsigned long)p + page * PAGE;
    int has = -1;
    while (has < 0 && fgets(line, sizeof line, f)) {
        unsigned long x, y;
        if (sscanf(line, "%lx-%lx ", &x, &y) == 2) from = x, to = y;
        if (!strncmp(line, "VmFlags:", 8) && from <= at && at < to) has = strstr(line, flag) != NULL;
    }
    fclose(f);
    CHECK(has == set, "flag%sof page %d is %d", flag, page, has);
}
static void check(void) {
    want_fill("the content", p, 16 * PAGE, 6);
    want_flag(0, " dc ", 1), want_flag(1, " dc ", 0);
    want_flag(2, " wf ", 1), want_flag(3, " wf ", 0);
    want_flag(4, " dd ", 1), want_flag(6, " sr ", 1), want_flag(5, " sr ", 0);
    pid_t kid = fork_child();
    if (!kid) {
        unsigned char v;
        int gone = mincore(p, PAGE, &v) < 0, wiped = *(uint64_t *)(p + 2 * PAGE) == 0;
        _exit(gone && wiped && *(uint64_t *)(p + PAGE) == mix(6 + PAGE / 8) ? 0 : 1);
    }
    int st;
    EQ(waitpid(kid, &st, 0), kid), EQ(st, 0);
}
static void mutate(void) {
    MUST(madvise(p, 16 * PAGE, MADV_DOFORK));
    MUST(madvise(p, 16 * PAGE, MADV_KEEPONFORK));
    MUST(madvise(p, 16 * PAGE, MADV_DODUMP));
    MUST(madvise(p, 16 * PAGE, MADV_NORMAL));
}
