/* A watch on a file that is gone by name but open, and the event of its removal still queued. */
#include "probe.h"
#include <sys/inotify.h>

static int in, fd, wd;
static void setup(void) {
    fd = MUST(open("f", O_RDWR | O_CREAT, 0644));
    in = MUST(inotify_init1(IN_NONBLOCK));
    wd = MUST(inotify_add_watch(in, "f", IN_ALL_EVENTS));
    MUST(unlink("f"));
}
static void check(void) {
    struct inotify_event e;
    EQ(read(in, &e, sizeof e), sizeof e), EQ(e.mask, IN_ATTRIB), EQ(e.wd, wd);
    EQ(read(in, &e, sizeof e), -1), EQ(errno, EAGAIN);
    EQ(write(fd, "x", 1), 1);
    EQ(read(in, &e, sizeof e), sizeof e), EQ(e.mask, IN_MODIFY), EQ(e.wd, wd);
}
static void mutate(void) {
    struct inotify_event e;
    TRY(read(in, &e, sizeof e));
    MUST(inotify_rm_watch(in, wd));
}
