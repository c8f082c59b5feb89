/* SysV semaphores: amounts to give back of several sizes and both signs, with threads; a set never operated on. */
#include "probe.h"
#include <sys/sem.h>

#define N 90
static int id, fresh;
static agent a, t;
static void op(int n, int by, int flags) {
    struct sembuf o = {n, by, flags};
    MUST(semop(id, &o, 1));
}
static long work(int cmd) {
    if (cmd == 's') {
        op(0, 1, SEM_UNDO), op(1, 32767, SEM_UNDO), op(1, -32767, 0), op(2, 5, 0), op(2, -5, SEM_UNDO);
        op(3, 9, SEM_UNDO), op(3, -9, SEM_UNDO), op(89, 300, SEM_UNDO);
    }
    if (cmd == 'm') op(0, 2, SEM_UNDO), op(2, 6, SEM_UNDO), op(3, 7, 0), op(89, 1, SEM_UNDO);
    if (cmd == 't') op(0, 3, SEM_UNDO); /* the same list as the main thread's */
    return 0;
}
static void setup(void) {
    id = MUST(semget(IPC_PRIVATE, N, 0600));
    fresh = MUST(semget(IPC_PRIVATE, 2, 0640));
    MUST(semctl(fresh, 1, SETVAL, 4));
    a = agent_fork(work);
    ask(&a, 's');
    agent_thread(&t, work);
    ask(&t, 't');
    op(0, -1, SEM_UNDO);
    for (int i = 10; i < 80; i++) op(i, i, i % 2 ? SEM_UNDO : 0);
}
static void check(void) {
    struct semid_ds d;
    MUST(semctl(fresh, 0, IPC_STAT, &d));
    EQ(d.sem_otime, 0), EQ(d.sem_perm.mode & 0777, 0640);
    EQ(semctl(fresh, 1, GETVAL), 4), EQ(semctl(fresh, 1, GETPID), getpid()), EQ(semctl(fresh, 0, GETPID), 0);
    MUST(semctl(fresh, 0, IPC_RMID));
    MUST(semctl(id, 0, IPC_STAT, &d));
    CHECK(d.sem_otime > 0, "never operated on");
    EQ(semctl(id, 0, GETVAL), 3), EQ(semctl(id, 2, GETVAL), 0), EQ(semctl(id, 89, GETVAL), 300);
    EQ(semctl(id, 1, GETPID), a.pid), EQ(semctl(id, 11, GETPID), getpid());
    op(0, 100, 0), op(1, 32767, 0);
    kill(a.pid, SIGKILL);
    TRY(waitpid(a.pid, NULL, 0));
    EQ(semctl(id, 0, GETVAL), 102), EQ(semctl(id, 1, GETVAL), 0), EQ(semctl(id, 2, GETVAL), 5);
    EQ(semctl(id, 3, GETVAL), 0), EQ(semctl(id, 89, GETVAL), 0);
    for (int i = 10; i < 80; i++) EQ(semctl(id, i, GETVAL), i);
    ask(&t, 't');
    EQ(semctl(id, 0, GETVAL), 105);
    MUST(semctl(id, 0, IPC_RMID));
}
static void mutate(void) {
    unsigned short v[N] = {0};
    ask(&a, 'm');
    ask(&t, 't');
    TRY(semctl(id, 0, SETALL, v));
    op(7, 7, SEM_UNDO);
    TRY(semctl(fresh, 0, IPC_RMID));
}
