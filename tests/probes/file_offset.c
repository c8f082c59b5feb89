/* Offsets and content of files open for reading, writing and both; the file agrees with the offset. */
#include "probe.h"

static int rw, ro, wo;
static char text[] = "0123456789abcdefghijklmnopqrstuvwxyz";
static void setup(void) {
    write_file("ro", text, 36);
    rw = MUST(open("rw", O_RDWR | O_CREAT | O_CLOEXEC, 0644));
    EQ(write(rw, text, 36), 36);
    MUST(lseek(rw, 10, SEEK_SET));
    ro = MUST(open("ro", O_RDONLY));
    char b[5];
    EQ(read(ro, b, 5), 5);
    wo = MUST(open("wo", O_WRONLY | O_CREAT, 0600));
    EQ(write(wo, text, 20), 20);
}
static void check(void) {
    EQ(lseek(rw, 0, SEEK_CUR), 10), EQ(lseek(ro, 0, SEEK_CUR), 5), EQ(lseek(wo, 0, SEEK_CUR), 20);
    want_data(rw, "abcdefghij", 10), want_data(ro, "56789", 5);
    want_file("rw", text, 36), want_file("wo", text, 20);
    EQ(write(wo, "X", 1), 1), EQ(write(rw, "Y", 1), 1);
    want_file("wo", "0123456789abcdefghijX", 21);
    want_file("rw", "0123456789abcdefghijYlmnopqrstuvwxyz", 36);
}
static void mutate(void) {
    EQ(write(rw, "overwritten", 11), 11);
    MUST(ftruncate(wo, 3));
    MUST(lseek(ro, 0, SEEK_END));
    EQ(write(wo, "more", 4), 4);
}
