/* POSIX message queue: attributes and queued messages with priorities. */
#include "probe.h"
#include <mqueue.h>

static char name[64], buf[128];
static mqd_t q;
static void setup(void) {
    struct mq_attr at = {.mq_maxmsg = 7, .mq_msgsize = 100};
    snprintf(name, sizeof name, "/probe-%d", getpid());
    q = mq_open(name, O_RDWR | O_CREAT | O_EXCL | O_NONBLOCK, 0600, &at);
    if (q < 0 && (errno == ENOSYS || errno == EACCES)) skip("POSIX message queues are not available here");
    MUST(q);
    for (int i = 0; i < 5; i++) {
        snprintf(buf, sizeof buf, "message %d", i);
        MUST(mq_send(q, buf, strlen(buf) + 1, i % 2));
    }
}
static void check(void) {
    static const int order[5] = {1, 3, 0, 2, 4};
    struct mq_attr at;
    MUST(mq_getattr(q, &at));
    EQ(at.mq_maxmsg, 7), EQ(at.mq_msgsize, 100), EQ(at.mq_curmsgs, 5), EQ(at.mq_flags, O_NONBLOCK);
    for (int i = 0; i < 5; i++) {
        unsigned prio;
        char want[32];
        snprintf(want, sizeof want, "message %d", order[i]);
        MUST(mq_receive(q, buf, sizeof buf, &prio));
        EQ(prio, order[i] % 2);
        CHECK(!strcmp(buf, want), "message %d is '%s'", i, buf);
    }
    MUST(mq_unlink(name));
}
static void mutate(void) {
    unsigned prio;
    TRY(mq_receive(q, buf, sizeof buf, &prio));
    TRY(mq_unlink(name));
}
