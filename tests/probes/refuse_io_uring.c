/* An io_uring. */
#include "probe.h"
#include <linux/io_uring.h>

static int fd;
static void setup(void) {
    struct io_uring_params p = {0};
    fd = syscall(SYS_io_uring_setup, 8, &p);
    if (fd < 0) skip("no io_uring here");
}
static void check(void) { MUST(syscall(SYS_io_uring_enter, fd, 0, 0, 0, NULL, 0)); }
static void mutate(void) { close(fd); }
