/* A page of the program's own text, written as a debugger does, and undone. */
#include "probe.h"

__attribute__((noinline, aligned(64))) static int answer_to_all(void) {
    __asm__ volatile("");
    return 42;
}
static unsigned char image[16];
static void setup(void) { memcpy(image, (void *)answer_to_all, sizeof image); }
static void check(void) {
    EQ(answer_to_all(), 42);
    CHECK(!memcmp(image, (void *)answer_to_all, sizeof image), "the text differs");
}
static void mutate(void) {
    unsigned char other[] = {0xb8, 43, 0, 0, 0, 0xc3};
    int fd = MUST(open("/proc/self/mem", O_RDWR | O_CLOEXEC));
    EQ(pwrite(fd, other, sizeof other, (off_t)(uintptr_t)answer_to_all), sizeof other);
    close(fd);
}
