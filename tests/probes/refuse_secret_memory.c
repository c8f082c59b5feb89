/* Memory that nobody else can read (memfd_secret). */
#include "probe.h"

#ifndef SYS_memfd_secret
#define SYS_memfd_secret 447
#endif
static char *p;
static void setup(void) {
    int fd = syscall(SYS_memfd_secret, 0);
    if (fd < 0) skip("no secret memory here");
    MUST(ftruncate(fd, 4 * PAGE));
    p = MUST(mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    fill(p, 4 * PAGE, 3);
}
static void check(void) { want_fill("the secret memory", p, 4 * PAGE, 3); }
static void mutate(void) { memset(p, 1, PAGE); }
