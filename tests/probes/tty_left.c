/* A session of which one member has given its controlling terminal up, and a child of that one. */
#include "probe.h"
#include <pty.h>

static int m;
static struct {
    volatile pid_t leader, member, left, below;
} *s;
static void setup(void) {
    s = map_shared(PAGE);
    pid_t leader = owned_child(MUST(forkpty(&m, NULL, NULL, NULL)));
    if (!leader) {
        signal(SIGHUP, SIG_IGN);
        if (!fork()) {
            int tty = open("/dev/tty", O_RDWR);
            if (ioctl(tty, TIOCNOTTY)) _exit(1);
            close(tty);
            if (!fork()) s->below = getpid();
            else s->left = getpid();
            for (;;) pause();
        }
        if (!fork()) {
            s->member = getpid();
            for (;;) pause();
        }
        s->leader = getpid();
        for (;;) pause();
    }
    CHECK(WAIT_FOR(s->leader && s->member && s->left && s->below, 2000), "not all have started");
    owned_child(s->member), owned_child(s->left), owned_child(s->below);
    wait_state(s->member, 'S'), wait_state(s->left, 'S'), wait_state(s->below, 'S');
}
static void check(void) {
    struct stat st;
    char path[64];
    int n = -1;
    MUST(ioctl(m, TIOCGPTN, &n));
    snprintf(path, sizeof path, "/dev/pts/%d", n);
    MUST(stat(path, &st));
    EQ(stat_field(s->leader, 7), st.st_rdev), EQ(stat_field(s->member, 7), st.st_rdev);
    EQ(stat_field(s->left, 7), 0), EQ(stat_field(s->below, 7), 0);
    EQ(stat_field(s->left, 6), s->leader), EQ(stat_field(s->below, 4), s->left);
}
static void mutate(void) {
    TRY(kill(s->left, SIGKILL)), TRY(kill(s->member, SIGKILL));
    CHECK(WAIT_FOR(task_state(s->left) == 'Z' && task_state(s->member) == 'Z', 2000), "they live");
}
