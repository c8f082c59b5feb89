/* A watch on a file that is gone by name but open, all events read: it goes on telling what is done to the file. */
#include "probe.h"
#include <sys/inotify.h>

static int in, fd, wd;
static void setup(void) {
    struct inotify_event e;
    fd = MUST(open("f", O_RDWR | O_CREAT, 0644));
    EQ(write(fd, "content", 7), 7);
    in = MUST(inotify_init1(IN_NONBLOCK));
    wd = MUST(inotify_add_watch(in, "f", IN_ALL_EVENTS));
    MUST(unlink("f"));
    EQ(read(in, &e, sizeof e), sizeof e), EQ(e.mask, IN_ATTRIB);
}
static void check(void) {
    struct inotify_event e;
    char b[8] = {0};
    EQ(read(in, &e, sizeof e), -1), EQ(errno, EAGAIN);
    EQ(pread(fd, b, 8, 0), 7), CHECK(!strcmp(b, "content"), "the content is '%s'", b);
    EQ(read(in, &e, sizeof e), sizeof e), EQ(e.mask, IN_ACCESS), EQ(e.wd, wd);
    EQ(pwrite(fd, "x", 1, 0), 1);
    EQ(read(in, &e, sizeof e), sizeof e), EQ(e.mask, IN_MODIFY), EQ(e.wd, wd);
    EQ(read(in, &e, sizeof e), -1), EQ(errno, EAGAIN);
}
static void mutate(void) {
    TRY(pwrite(fd, "other", 5, 3));
    TRY(inotify_rm_watch(in, wd));
}
