/* Who gets the signals of a descriptor (F_SETOWN, F_SETSIG, O_ASYNC). */
#include "probe.h"

static int p[2];
static void setup(void) {
    struct f_owner_ex o = {F_OWNER_TID, gettid()};
    MUST(pipe(p));
    MUST(fcntl(p[0], F_SETOWN_EX, &o));
    MUST(fcntl(p[0], F_SETSIG, SIGRTMIN + 4));
    MUST(fcntl(p[0], F_SETFL, O_ASYNC | O_NONBLOCK));
}
static void check(void) {
    struct f_owner_ex o;
    MUST(fcntl(p[0], F_GETOWN_EX, &o));
    EQ(o.type, F_OWNER_TID), EQ(o.pid, gettid());
    EQ(fcntl(p[0], F_GETSIG), SIGRTMIN + 4);
    EQ(fcntl(p[0], F_GETFL) & (O_ASYNC | O_NONBLOCK), O_ASYNC | O_NONBLOCK);
    sigset_t s;
    sigemptyset(&s), sigaddset(&s, SIGRTMIN + 4);
    ZERO(pthread_sigmask(SIG_BLOCK, &s, NULL));
    EQ(write(p[1], "x", 1), 1);
    struct timespec limit = {1, 0};
    siginfo_t i;
    CHECK(sigtimedwait(&s, &i, &limit) == SIGRTMIN + 4, "no signal came");
    EQ(i.si_fd, p[0]);
}
static void mutate(void) {
    struct f_owner_ex o = {F_OWNER_PID, 0};
    MUST(fcntl(p[0], F_SETOWN_EX, &o));
    MUST(fcntl(p[0], F_SETSIG, 0));
    MUST(fcntl(p[0], F_SETFL, 0));
}
