/* IPC objects of another user than root, made and used by a process that gives up its rights. */
#include "probe.h"
#include <mqueue.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>

#define USER 1234
static int shm, sem, msg;
static mqd_t q;
static char name[64], *p;
static agent a;
static struct m {
    long type;
    char text[8];
} m = {7, "letter"};
static void want(const struct ipc_perm *perm, int mode) {
    EQ(perm->uid, USER), EQ(perm->gid, USER + 1), EQ(perm->cuid, USER), EQ(perm->cgid, USER + 1);
    EQ(perm->mode & 0777, mode);
}
static long work(int cmd) {
    struct mq_attr at = {.mq_maxmsg = 2, .mq_msgsize = 20};
    if (cmd == 's') {
        MUST(setresgid(USER + 1, USER + 1, USER + 1));
        MUST(setresuid(USER, USER, USER));
        shm = MUST(shmget(IPC_PRIVATE, PAGE, 0600));
        p = MUST(shmat(shm, NULL, 0));
        strcpy(p, "mine");
        sem = MUST(semget(IPC_PRIVATE, 1, 0622));
        struct sembuf o = {0, 3, SEM_UNDO};
        MUST(semop(sem, &o, 1));
        msg = MUST(msgget(IPC_PRIVATE, 0600));
        MUST(msgsnd(msg, &m, sizeof m.text, 0));
        q = mq_open(name, O_RDWR | O_CREAT | O_EXCL, 0600, &at);
        if (q < 0 && (errno == ENOSYS || errno == EACCES)) return 1;
        MUST(q);
        MUST(mq_send(q, "note", 4, 1));
    }
    if (cmd == 'm') {
        TRY(shmdt(p));
        TRY(shmctl(shm, IPC_RMID, NULL)), TRY(msgctl(msg, IPC_RMID, NULL));
        struct sembuf o = {0, 1, 0};
        TRY(semop(sem, &o, 1));
        TRY(mq_unlink(name));
    }
    if (cmd == 'c') {
        char buf[20];
        struct shmid_ds s;
        struct semid_ds e;
        struct msqid_ds d;
        struct m got;
        MUST(shmctl(shm, IPC_STAT, &s)), want(&s.shm_perm, 0600), EQ(s.shm_nattch, 1);
        MUST(semctl(sem, 0, IPC_STAT, &e)), want(&e.sem_perm, 0622), EQ(semctl(sem, 0, GETVAL), 3);
        MUST(msgctl(msg, IPC_STAT, &d)), want(&d.msg_perm, 0600), EQ(d.msg_lspid, getpid());
        EQ(msgrcv(msg, &got, sizeof got.text, 0, IPC_NOWAIT), (long)sizeof got.text), EQ(got.type, 7);
        CHECK(!strcmp(p, "mine"), "the segment holds %.4s", p);
        MUST(shmdt(p)), p = MUST(shmat(shm, NULL, 0));
        EQ(mq_receive(q, buf, sizeof buf, NULL), 4);
        MUST(mq_unlink(name));
        MUST(shmctl(shm, IPC_RMID, NULL)), MUST(msgctl(msg, IPC_RMID, NULL));
        MUST(semctl(sem, 0, SETVAL, 5));
        struct sembuf o = {0, -4, SEM_UNDO};
        MUST(semop(sem, &o, 1)), EQ(semctl(sem, 0, GETVAL), 1);
        MUST(semctl(sem, 0, IPC_RMID));
    }
    return 0;
}
static void setup(void) {
    snprintf(name, sizeof name, "/owner-%d", getpid());
    a = agent_fork(work);
    if (ask(&a, 's')) skip("POSIX message queues are not available here");
}
static void check(void) { ask(&a, 'c'); }
static void mutate(void) { ask(&a, 'm'); }
