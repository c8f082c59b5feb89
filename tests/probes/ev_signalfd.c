/* A signal descriptor: its mask, and signals waiting for it. */
#include "probe.h"
#include <sys/signalfd.h>

static int fd;
static sigset_t s;
static void setup(void) {
    sigemptyset(&s), sigaddset(&s, SIGUSR1), sigaddset(&s, SIGRTMIN + 2);
    ZERO(pthread_sigmask(SIG_BLOCK, &s, NULL));
    fd = MUST(signalfd(-1, &s, SFD_NONBLOCK | SFD_CLOEXEC));
    MUST(sigqueue(getpid(), SIGRTMIN + 2, (union sigval){.sival_int = 31337}));
}
static void check(void) {
    struct signalfd_siginfo i;
    EQ(read(fd, &i, sizeof i), sizeof i), EQ(i.ssi_signo, SIGRTMIN + 2), EQ(i.ssi_int, 31337), EQ(i.ssi_pid, getpid());
    EQ(read(fd, &i, sizeof i), -1), EQ(errno, EAGAIN);
    raise(SIGUSR1);
    EQ(read(fd, &i, sizeof i), sizeof i), EQ(i.ssi_signo, SIGUSR1);
    EQ(fcntl(fd, F_GETFD), FD_CLOEXEC);
}
static void mutate(void) {
    struct signalfd_siginfo i;
    TRY(read(fd, &i, sizeof i));
    sigdelset(&s, SIGUSR1);
    MUST(signalfd(fd, &s, 0));
}
