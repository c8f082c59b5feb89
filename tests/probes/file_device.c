/* Paths, open files and directories are on one device, as they were. */
#include "probe.h"

static int fd, dir;
static void setup(void) {
    MUST(mkdir("d", 0755));
    fd = MUST(open("d/f", O_RDWR | O_CREAT, 0644)), dir = MUST(open("d", O_RDONLY | O_DIRECTORY));
    EQ(write(fd, "x", 1), 1);
}
static void check(void) {
    struct stat f, p, d, here;
    MUST(fstat(fd, &f)), MUST(stat("d/f", &p)), MUST(fstat(dir, &d)), MUST(stat(".", &here));
    CHECK(f.st_dev == p.st_dev && d.st_dev == p.st_dev && here.st_dev == p.st_dev, "devices %lx %lx %lx %lx", f.st_dev, p.st_dev, d.st_dev, here.st_dev);
    EQ(f.st_ino, p.st_ino);
    MUST(rename("d/f", "g")); /* no other device between them */
    MUST(link("g", "d/h"));
}
static void mutate(void) {
    EQ(write(fd, "y", 1), 1);
    MUST(unlink("d/f")), MUST(rmdir("d"));
    write_file("d", "", 0);
}
