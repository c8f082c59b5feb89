/* File mappings whose protection was changed after the file was opened another way or closed. */
#include "probe.h"

static char *ro, *rw, *none;
static void setup(void) {
    char *d = map_anon(4 * PAGE);
    fill(d, 4 * PAGE, 5);
    write_file("f", d, 4 * PAGE);
    int r = MUST(open("f", O_RDONLY)), w = MUST(open("f", O_RDWR));
    ro = MUST(mmap(NULL, 4 * PAGE, PROT_READ, MAP_SHARED, r, 0));
    rw = MUST(mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, w, 0));
    none = MUST(mmap(NULL, 4 * PAGE, PROT_NONE, MAP_PRIVATE, r, 0));
    MUST(mprotect(rw + PAGE, PAGE, PROT_READ));
    close(r), close(w);
}
static void check(void) {
    want_fill("the read-only mapping", ro, 4 * PAGE, 5);
    EQ(mprotect(ro, PAGE, PROT_READ | PROT_WRITE), -1), EQ(errno, EACCES); /* never opened for writing */
    MUST(mprotect(rw + PAGE, PAGE, PROT_READ | PROT_WRITE)); /* opened for writing */
    strcpy(rw + PAGE, "written");
    CHECK(!strcmp(ro + PAGE, "written"), "the two mappings are not of one file");
    MUST(mprotect(none, 4 * PAGE, PROT_READ | PROT_WRITE));
    strcpy(none + 2 * PAGE, "private");
    want_fill("after a private write", ro + 2 * PAGE, PAGE, 5 + 2 * PAGE / 8);
}
static void mutate(void) {
    MUST(munmap(rw, 2 * PAGE)), MUST(munmap(none, PAGE));
    memset(rw + 2 * PAGE, 1, PAGE);
}
