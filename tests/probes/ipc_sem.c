/* SysV semaphores: values, undo amounts of two processes, last operator. */
#include "probe.h"
#include <sys/sem.h>

static int id;
static agent a;
static void op(int n, int by, int flags) {
    struct sembuf o = {n, by, flags};
    MUST(semop(id, &o, 1));
}
static long work(int cmd) {
    if (cmd == 's') op(0, -2, SEM_UNDO);
    if (cmd == 'm') op(0, 1, SEM_UNDO);
    return 0;
}
static void setup(void) {
    id = MUST(semget(0x50524f43, 3, IPC_CREAT | IPC_EXCL | 0600));
    unsigned short v[3] = {10, 20, 30};
    MUST(semctl(id, 0, SETALL, v));
    a = agent_fork(work);
    ask(&a, 's');
    op(1, 5, 0);
}
static void check(void) {
    unsigned short v[3];
    EQ(semget(0x50524f43, 0, 0), id);
    MUST(semctl(id, 0, GETALL, v));
    EQ(v[0], 8), EQ(v[1], 25), EQ(v[2], 30);
    EQ(semctl(id, 0, GETPID), a.pid), EQ(semctl(id, 1, GETPID), getpid());
    kill(a.pid, SIGKILL);
    TRY(waitpid(a.pid, NULL, 0));
    EQ(semctl(id, 0, GETVAL), 10); /* given back at its end */
    MUST(semctl(id, 0, IPC_RMID));
}
static void mutate(void) {
    unsigned short v[3] = {1, 1, 1};
    ask(&a, 'm');
    TRY(semctl(id, 0, SETALL, v));
    TRY(semctl(id, 0, IPC_RMID));
}
