/* A fanotify group. */
#include "probe.h"
#include <sys/fanotify.h>

static int fd;
static void setup(void) {
    MUST(mkdir("d", 0755));
    fd = fanotify_init(FAN_CLASS_NOTIF | FAN_NONBLOCK | FAN_REPORT_FID, 0);
    if (fd < 0 || fanotify_mark(fd, FAN_MARK_ADD, FAN_CREATE | FAN_ONDIR, AT_FDCWD, "d") < 0) skip("no fanotify here");
    write_file("d/x", "", 0);
}
static void check(void) {
    char b[512];
    CHECK(read(fd, b, sizeof b) > 0, "the event is lost");
}
static void mutate(void) {
    char b[512];
    TRY(read(fd, b, sizeof b));
}
