/* SysV shared memory: id, key, size, mode, attachments of two processes, one segment marked for removal. */
#include "probe.h"
#include <sys/shm.h>

#define N (16 * PAGE)
static int id, doomed;
static char *p, *q;
static agent a;
static long work(int cmd) {
    if (cmd == 'c') want_fill("seen from the child", p, N, 51);
    if (cmd == 'w') p[0] = 9;
    if (cmd == 'd') MUST(shmdt(p));
    return 0;
}
static void setup(void) {
    id = MUST(shmget(0x50524f42, N, IPC_CREAT | IPC_EXCL | 0640));
    p = MUST(shmat(id, NULL, 0));
    fill(p, N, 51);
    doomed = MUST(shmget(IPC_PRIVATE, N, 0600));
    q = MUST(shmat(doomed, NULL, 0));
    fill(q, N, 52);
    MUST(shmctl(doomed, IPC_RMID, NULL));
    a = agent_fork(work);
}
static void check(void) {
    struct shmid_ds d;
    want_fill("the segment", p, N, 51), want_fill("the removed segment", q, N, 52);
    ask(&a, 'c'), ask(&a, 'w');
    EQ(p[0], 9);
    EQ(shmget(0x50524f42, 0, 0), id);
    MUST(shmctl(id, IPC_STAT, &d));
    EQ(d.shm_nattch, 2), EQ(d.shm_segsz, N), EQ(d.shm_perm.mode & 0777, 0640);
    MUST(shmctl(id, IPC_RMID, NULL));
}
static void mutate(void) {
    fill(p, N, 53), fill(q, N, 54);
    ask(&a, 'd');
    TRY(shmctl(id, IPC_RMID, NULL));
}
