/* SysV message queue: messages with their types, in order, and who sent last. */
#include "probe.h"
#include <sys/msg.h>

static int id;
static struct m {
    long type;
    char text[100];
} buf;
static void setup(void) {
    id = MUST(msgget(0x50524f44, IPC_CREAT | IPC_EXCL | 0600));
    for (int i = 0; i < 10; i++) {
        buf.type = i % 3 + 1;
        snprintf(buf.text, sizeof buf.text, "message %d", i);
        MUST(msgsnd(id, &buf, 20 + i, 0));
    }
}
static void check(void) {
    struct msqid_ds d;
    EQ(msgget(0x50524f44, 0), id);
    MUST(msgctl(id, IPC_STAT, &d));
    EQ(d.msg_qnum, 10), EQ(d.msg_lspid, getpid());
    char want[32];
    for (int i = 0; i < 10; i++) {
        EQ(msgrcv(id, &buf, sizeof buf.text, 0, IPC_NOWAIT), 20 + i);
        snprintf(want, sizeof want, "message %d", i);
        EQ(buf.type, i % 3 + 1);
        CHECK(!strcmp(buf.text, want), "message %d is '%.20s'", i, buf.text);
    }
    MUST(msgctl(id, IPC_RMID, NULL));
}
static void mutate(void) {
    TRY(msgrcv(id, &buf, sizeof buf.text, 2, IPC_NOWAIT));
    TRY(msgctl(id, IPC_RMID, NULL));
    TRY(msgget(0x50524f44, IPC_CREAT | 0600));
}
