/* inotify: watches by number, on files and directories, with events queued. */
#include "probe.h"
#include <sys/inotify.h>

static int fd, wd_dir, wd_file;
static void setup(void) {
    MUST(mkdir("d", 0755));
    write_file("f", "", 0), write_file("dropped", "", 0);
    fd = MUST(inotify_init1(IN_NONBLOCK | IN_CLOEXEC));
    int dropped = MUST(inotify_add_watch(fd, "dropped", IN_ALL_EVENTS));
    wd_dir = MUST(inotify_add_watch(fd, "d", IN_CREATE | IN_DELETE | IN_MOVE)), wd_file = MUST(inotify_add_watch(fd, "f", IN_MODIFY));
    MUST(inotify_rm_watch(fd, dropped));
    char b[4096];
    EQ(read(fd, b, sizeof b), sizeof(struct inotify_event));
    write_file("d/one", "", 0);
    MUST(rename("d/one", "d/two"));
}
static struct inotify_event *next(void) {
    static char b[4096] __attribute__((aligned(8)));
    static ssize_t at, n;
    if (at >= n) {
        at = 0;
        n = read(fd, b, sizeof b);
        if (n <= 0) {
            n = 0;
            return NULL;
        }
    }
    struct inotify_event *e = (void *)(b + at);
    at += sizeof *e + e->len;
    return e;
}
static uint32_t cookie;
static void want(int wd, uint32_t mask, const char *name) {
    struct inotify_event *e = next();
    CHECK(e, "an event %x on '%s' is missing", mask, name);
    CHECK(e->wd == wd && e->mask == mask && !strcmp(e->len ? e->name : "", name), "the event is %x of watch %d on '%s', not %x of %d on '%s'", e->mask, e->wd, e->len ? e->name : "", mask, wd, name);
    cookie = e->cookie;
}
static void check(void) {
    want(wd_dir, IN_CREATE, "one");
    want(wd_dir, IN_MOVED_FROM, "one");
    uint32_t c = cookie;
    want(wd_dir, IN_MOVED_TO, "two");
    EQ(cookie, c);
    CHECK(!next(), "there are more events");
    MUST(unlink("d/two"));
    int w = MUST(open("f", O_WRONLY));
    EQ(write(w, "x", 1), 1);
    close(w);
    want(wd_dir, IN_DELETE, "two"), want(wd_file, IN_MODIFY, "");
    CHECK(!next(), "there are more events");
    EQ(inotify_add_watch(fd, "d", IN_CREATE), wd_dir); /* the same inode, the same watch */
}
static void mutate(void) {
    char b[4096];
    TRY(read(fd, b, sizeof b));
    write_file("d/more", "", 0);
    MUST(inotify_rm_watch(fd, wd_file));
}
