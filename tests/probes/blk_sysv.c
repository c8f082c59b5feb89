/* Waiting for a SysV message and for a SysV semaphore. */
#include "probe.h"
#include <sys/msg.h>
#include <sys/sem.h>

static int q, s;
static blocked b[2];
static long receiving(void) {
    struct {
        long type;
        char text[16];
    } m;
    return msgrcv(q, &m, 16, 5, 0);
}
static long lowering(void) {
    struct sembuf o = {0, -3, 0};
    return semop(s, &o, 1);
}
static void setup(void) {
    q = MUST(msgget(IPC_PRIVATE, 0600)), s = MUST(semget(IPC_PRIVATE, 1, 0600));
    block_in(&b[0], receiving), block_in(&b[1], lowering);
}
static void release(void) {
    struct {
        long type;
        char text[16];
    } m = {5, "abc"};
    struct sembuf o = {0, 3, 0};
    MUST(msgsnd(q, &m, 3, 0)), MUST(semop(s, &o, 1));
    WAIT_FOR(b[0].done && b[1].done, 1000);
}
static void check(void) {
    for (int i = 0; i < 2; i++) want_blocked(&b[i]);
    EQ(semctl(s, 0, GETNCNT), 1);
    release();
    want_return(&b[0], 3), want_return(&b[1], 0);
    TRY(msgctl(q, IPC_RMID, NULL));
    TRY(semctl(s, 0, IPC_RMID));
}
static void mutate(void) { release(); }
