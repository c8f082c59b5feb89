/* SysV shared memory: a segment nobody has attached, one of which a part is unmapped and a part write-protected, one attached read-only twice. */
#include "probe.h"
#include <sys/shm.h>

#define N (8 * PAGE)
static int idle, part, twice, checked;
static char *p, *a, *b;
static void setup(void) {
    idle = MUST(shmget(IPC_PRIVATE, N + 100, 0600));
    char *at = MUST(shmat(idle, NULL, 0));
    fill(at, N, 61);
    MUST(shmdt(at));
    part = MUST(shmget(IPC_PRIVATE, N, 0600));
    p = MUST(shmat(part, NULL, 0));
    fill(p, N, 62);
    MUST(munmap(p, PAGE));
    MUST(mprotect(p + 4 * PAGE, PAGE, PROT_READ));
    twice = MUST(shmget(IPC_PRIVATE, N, 0600));
    a = MUST(shmat(twice, NULL, 0));
    fill(a, N, 63);
    MUST(shmdt(a));
    a = MUST(shmat(twice, NULL, SHM_RDONLY));
    b = MUST(shmat(twice, NULL, SHM_RDONLY));
}
static void check(void) {
    struct shmid_ds d;
    checked = 1;
    MUST(shmctl(idle, IPC_STAT, &d));
    EQ(d.shm_nattch, 0), EQ(d.shm_segsz, N + 100);
    char *at = MUST(shmat(idle, NULL, 0));
    want_fill("the idle segment", at, N, 61);
    MUST(shmdt(at));
    MUST(shmctl(idle, IPC_RMID, NULL));
    MUST(shmctl(part, IPC_STAT, &d));
    EQ(d.shm_nattch, 3);
    at = MUST(shmat(part, NULL, 0));
    want_fill("the segment in parts", at, N, 62);
    EQ(memcmp(at + PAGE, p + PAGE, N - PAGE), 0);
    p[PAGE] ^= 1, p[7 * PAGE] ^= 1;
    EQ(at[PAGE], p[PAGE]), EQ(at[7 * PAGE], p[7 * PAGE]);
    MUST(shmdt(at));
    MUST(shmdt(p)); /* all parts at once, wherever they are */
    MUST(shmctl(part, IPC_STAT, &d));
    EQ(d.shm_nattch, 0);
    MUST(shmctl(part, IPC_RMID, NULL));
    want_fill("the segment attached twice", a, N, 63), want_fill("the other attachment", b, N, 63);
    MUST(shmctl(twice, IPC_STAT, &d));
    EQ(d.shm_nattch, 2);
    MUST(shmctl(twice, IPC_RMID, NULL));
}
static void mutate(void) {
    if (checked) return; /* there is nothing left */
    char *at = shmat(idle, NULL, 0);
    fill(at, N, 64);
    TRY(shmdt(at));
    fill(p + PAGE, 3 * PAGE, 65);
    TRY(shmdt(p));
    TRY(shmdt(b));
    TRY(shmctl(idle, IPC_RMID, NULL));
    TRY(shmctl(twice, IPC_RMID, NULL));
}
