/* The x87 stack, its depth and control word, in a thread stopped in the middle of user code. */
#include "probe.h"

static struct {
    volatile int go, parked;
    long double in[8], out[8];
    uint16_t cw_in, cw_out, sw_out;
} box;
static pthread_t thread;

static void *spin(void *unused) {
    (void)unused;
    __asm__ volatile("fninit\n fldcw %[cwi]\n"
                     "fldt 0(%[in])\n fldt 16(%[in])\n fldt 32(%[in])\n fldt 48(%[in])\n fldt 64(%[in])\n fldt 80(%[in])\n"
                     "fldt 96(%[in])\n"
                     "movl $1, %[parked]\n"
                     "1: pause\n cmpl $0, %[go]\n je 1b\n"
                     "fnstsw %[sw]\n fnstcw %[cwo]\n"
                     "fstpt 96(%[out])\n fstpt 80(%[out])\n fstpt 64(%[out])\n fstpt 48(%[out])\n fstpt 32(%[out])\n"
                     "fstpt 16(%[out])\n fstpt 0(%[out])\n fninit\n"
                     : [parked] "=m"(box.parked), [sw] "=m"(box.sw_out), [cwo] "=m"(box.cw_out)
                     : [in] "r"(box.in), [out] "r"(box.out), [cwi] "m"(box.cw_in), [go] "m"(box.go)
                     : "memory", "cc");
    return NULL;
}
static void setup(void) {
    box.cw_in = 0x0f3f; /* round towards zero, all exceptions masked */
    for (int i = 0; i < 7; i++) box.in[i] = 1.0L / (i + 3);
    ZERO(pthread_create(&thread, NULL, spin, NULL));
    CHECK(WAIT_FOR(box.parked, 2000), "the thread did not start");
}
static void check(void) {
    CHECK(!box.go, "the thread has gone on already");
    box.go = 1;
    ZERO(pthread_join(thread, NULL));
    EQ(box.cw_out & 0x0f3f, box.cw_in);
    EQ((box.sw_out >> 11) & 7, 1); /* seven values deep */
    for (int i = 0; i < 7; i++) CHECK(box.out[i] == 1.0L / (i + 3), "st(%d) is %Lg", i, box.out[i]);
}
static void mutate(void) {
    box.go = 1;
    TRY(pthread_join(thread, NULL));
}
