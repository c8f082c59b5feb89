/* Processes that write, rename, read back and delete files, and append to a common log. */
#include "run.h"

static int log_fd;
static void round_of(int i) {
    char a[32], b[32], line[64], back[64] = {0};
    long n = run->rounds[i];
    snprintf(a, sizeof a, "file%d.new", i), snprintf(b, sizeof b, "file%d", i);
    int len = snprintf(line, sizeof line, "worker %d round %ld\n", i, n);
    int fd = open(a, O_RDWR | O_CREAT | O_EXCL, 0644);
    GOOD(fd >= 0);
    GOOD(write(fd, line, len) == len);
    GOOD(rename(a, b) == 0);
    GOOD(pread(fd, back, sizeof back, 0) == len && !strcmp(back, line));
    close(fd);
    fd = open(b, O_RDONLY);
    GOOD(fd >= 0 && read(fd, back, sizeof back) == len && !strcmp(back, line));
    close(fd);
    GOOD(write(log_fd, line, len) == len);
    struct stat st;
    GOOD(fstat(log_fd, &st) == 0);
    if (n % 7 == 6) GOOD(unlink(b) == 0);
    if (st.st_size > 1 << 20) GOOD(ftruncate(log_fd, 0) == 0);
}
static void setup(void) {
    log_fd = MUST(open("log", O_RDWR | O_CREAT | O_APPEND, 0644));
    run_as_processes(2);
}
