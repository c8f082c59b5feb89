/* A process that is to be told of the next message of a queue: what it is told cannot be read. */
#include "probe.h"
#include <mqueue.h>

static mqd_t q;
static void setup(void) {
    char name[64];
    struct mq_attr at = {.mq_maxmsg = 4, .mq_msgsize = 50};
    sigset_t s;
    sigemptyset(&s), sigaddset(&s, SIGUSR1);
    ZERO(pthread_sigmask(SIG_BLOCK, &s, NULL));
    snprintf(name, sizeof name, "/notify-%d", getpid());
    q = mq_open(name, O_RDWR | O_CREAT | O_EXCL, 0600, &at);
    if (q < 0 && (errno == ENOSYS || errno == EACCES)) skip("POSIX message queues are not available here");
    MUST(q);
    MUST(mq_unlink(name));
    struct sigevent e = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1, .sigev_value.sival_int = 5};
    MUST(mq_notify(q, &e));
}
static void check(void) {
    sigset_t s;
    siginfo_t i;
    struct timespec limit = {1, 0};
    sigemptyset(&s), sigaddset(&s, SIGUSR1);
    MUST(mq_send(q, "x", 1, 0));
    CHECK(sigtimedwait(&s, &i, &limit) == SIGUSR1, "no signal came");
    EQ(i.si_value.sival_int, 5);
}
static void mutate(void) { TRY(mq_notify(q, NULL)); }
