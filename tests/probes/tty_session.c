/* A session with a controlling terminal: foreground group, background group, signals from the keyboard. */
#include "probe.h"
#include <pty.h>

static int m;
static pid_t leader;
static struct {
    pid_t fg, bg, leader;
    volatile int got_fg, got_bg, ready;
} *s;

static void job(volatile int *got) {
    sigset_t set;
    sigemptyset(&set), sigaddset(&set, SIGINT);
    sigprocmask(SIG_BLOCK, &set, NULL);
    __sync_fetch_and_add(&s->ready, 1);
    int sig;
    for (;;) sigwait(&set, &sig), (*got)++;
}
static void setup(void) {
    s = map_shared(PAGE);
    leader = owned_child(MUST(forkpty(&m, NULL, NULL, NULL)));
    if (!leader) {
        signal(SIGTTOU, SIG_IGN), signal(SIGHUP, SIG_IGN);
        s->leader = getpid();
        for (int i = 0; i < 2; i++) {
            pid_t p = fork();
            if (!p) setpgid(0, 0), job(i ? &s->got_bg : &s->got_fg);
            setpgid(p, p);
            *(i ? &s->bg : &s->fg) = p;
        }
        tcsetpgrp(0, s->fg);
        __sync_fetch_and_add(&s->ready, 1);
        for (;;) pause();
    }
    CHECK(WAIT_FOR(s->ready == 3, 2000), "the jobs did not start");
    owned_child(s->fg), owned_child(s->bg);
    wait_state(s->fg, 'S'), wait_state(s->bg, 'S');
}
static void check(void) {
    pid_t fg = -1;
    MUST(ioctl(m, TIOCGPGRP, &fg)), EQ(fg, s->fg);
    EQ(stat_field(s->bg, 7), stat_field(s->leader, 7)); /* the controlling terminal */
    EQ(stat_field(s->fg, 8), s->fg), EQ(stat_field(s->fg, 6), s->leader), EQ(stat_field(s->bg, 5), s->bg);
    int before = s->got_fg, before_bg = s->got_bg;
    EQ(write(m, "\003", 1), 1);
    CHECK(WAIT_FOR(s->got_fg == before + 1, 2000), "the foreground job did not get the signal");
    EQ(s->got_bg, before_bg);
}
static void mutate(void) {
    kill(-s->fg, SIGKILL);
    int bg = s->bg;
    TRY(ioctl(m, TIOCSPGRP, &bg));
    sleep_ms(20);
}
