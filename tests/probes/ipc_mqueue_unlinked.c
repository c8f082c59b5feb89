/* POSIX message queue without a name, two descriptions of which one is read-only; another of the same name. */
#include "probe.h"
#include <mqueue.h>

static char name[64], buf[64];
static mqd_t q, r, other;
static void setup(void) {
    struct mq_attr at = {.mq_maxmsg = 4, .mq_msgsize = 50};
    snprintf(name, sizeof name, "/unlinked-%d", getpid());
    q = mq_open(name, O_RDWR | O_CREAT | O_EXCL, 0640, &at);
    if (q < 0 && (errno == ENOSYS || errno == EACCES)) skip("POSIX message queues are not available here");
    MUST(q);
    r = MUST(mq_open(name, O_RDONLY | O_NONBLOCK));
    MUST(mq_unlink(name));
    MUST(mq_send(q, "first", 5, 9)), MUST(mq_send(q, "", 0, 3));
    other = MUST(mq_open(name, O_RDWR | O_CREAT | O_EXCL, 0600, &at));
    MUST(mq_send(other, "other", 5, 1));
}
static void check(void) {
    struct mq_attr at;
    struct stat st;
    unsigned prio;
    MUST(mq_getattr(q, &at));
    EQ(at.mq_maxmsg, 4), EQ(at.mq_msgsize, 50), EQ(at.mq_curmsgs, 2), EQ(at.mq_flags, 0);
    MUST(fstat(q, &st)), EQ(st.st_nlink, 0), EQ(st.st_mode & 0777, 0640);
    EQ(mq_receive(r, buf, sizeof buf, &prio), 5), EQ(prio, 9);
    CHECK(!memcmp(buf, "first", 5), "it is '%.5s'", buf);
    EQ(mq_receive(r, buf, sizeof buf, &prio), 0), EQ(prio, 3);
    EQ(mq_receive(r, buf, sizeof buf, &prio), -1), EQ(errno, EAGAIN);
    EQ(mq_send(r, "x", 1, 0), -1), EQ(errno, EBADF);
    mqd_t again = MUST(mq_open(name, O_RDONLY));
    EQ(mq_receive(again, buf, sizeof buf, &prio), 5), EQ(prio, 1);
    CHECK(!memcmp(buf, "other", 5), "it is '%.5s'", buf);
    MUST(mq_getattr(other, &at)), EQ(at.mq_curmsgs, 0);
    MUST(mq_close(again)), MUST(mq_unlink(name));
}
static void mutate(void) {
    unsigned prio;
    TRY(mq_send(q, "more", 4, 1)), TRY(mq_send(other, "more", 4, 1));
    TRY(mq_receive(q, buf, sizeof buf, &prio));
    TRY(mq_unlink(name));
    TRY(mq_close(r));
}
