/* A FIFO: content, ends by name in different processes, and by name again. */
#include "probe.h"

static int r, w;
static agent a;
static int cw;
static long work(int cmd) {
    if (cmd == 'o') cw = MUST(open("fifo", O_WRONLY | O_CLOEXEC));
    if (cmd == 'w') EQ(write(cw, "child", 5), 5);
    return 0;
}
static void setup(void) {
    MUST(mkfifo("fifo", 0600));
    a = agent_fork(work);
    r = MUST(open("fifo", O_RDONLY | O_NONBLOCK)), w = MUST(open("fifo", O_WRONLY));
    ask(&a, 'o');
    EQ(write(w, "content", 7), 7);
}
static void check(void) {
    ask(&a, 'w');
    want_data(r, "contentchild", 12);
    int again = MUST(open("fifo", O_WRONLY | O_NONBLOCK)); /* the name leads to the same FIFO */
    EQ(write(again, "by name", 7), 7);
    want_data(r, "by name", 7);
    close(again);
    EQ(write(w, "x", 1), 1), want_data(r, "x", 1);
}
static void mutate(void) {
    char b[3];
    EQ(read(r, b, 3), 3);
    MUST(unlink("fifo")), MUST(mkfifo("fifo", 0644));
    kill(a.pid, SIGKILL);
}
