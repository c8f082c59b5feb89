/* The way editors and package managers write: new file, rename over. The reader of the old one keeps it. */
#include "probe.h"

static int old;
static struct stat st;
static void setup(void) {
    write_file("conf", "version 1", 9);
    old = MUST(open("conf", O_RDONLY));
    write_file("conf.new", "version 2", 9);
    MUST(rename("conf.new", "conf"));
    MUST(stat("conf", &st));
}
static void check(void) {
    struct stat now;
    want_file("conf", "version 2", 9);
    MUST(stat("conf", &now)), EQ(now.st_ino, st.st_ino);
    char b[16] = {0};
    EQ(pread(old, b, sizeof b, 0), 9);
    CHECK(!strcmp(b, "version 1"), "the old one holds '%s'", b);
    EQ(access("conf.new", F_OK), -1);
}
static void mutate(void) {
    write_file("conf.new", "version 3", 9);
    MUST(rename("conf.new", "conf"));
    close(old);
    old = MUST(open("conf", O_RDONLY));
}
