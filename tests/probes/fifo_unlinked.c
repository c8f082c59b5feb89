/* A FIFO without a name any more, with content. */
#include "probe.h"

static int fd;
static void setup(void) {
    MUST(mkfifo("fifo", 0600));
    fd = MUST(open("fifo", O_RDWR));
    EQ(write(fd, "inside", 6), 6);
    MUST(unlink("fifo"));
}
static void check(void) {
    struct stat st;
    EQ(access("fifo", F_OK), -1);
    MUST(fstat(fd, &st));
    CHECK(S_ISFIFO(st.st_mode), "not a FIFO");
    want_data(fd, "inside", 6);
    EQ(write(fd, "again", 5), 5), want_data(fd, "again", 5);
}
static void mutate(void) {
    char b[2];
    if (readable(fd, 0)) EQ(read(fd, b, 2), 2); /* unless the check has read it */
    MUST(mkfifo("fifo", 0600));
}
