/* xmm0-15 and MXCSR of a thread stopped in the middle of user code. */
#include "probe.h"

static struct {
    volatile int go, parked;
    uint32_t csr_in, csr_out;
    uint64_t in[32], out[32];
} box;
static pthread_t thread;

#define L(i) "movdqu 16*" #i "(%[in]), %%xmm" #i "\n"
#define S(i) "movdqu %%xmm" #i ", 16*" #i "(%[out])\n"
#define ALL(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)

static void *spin(void *unused) {
    (void)unused;
    uint32_t saved = __builtin_ia32_stmxcsr();
    __asm__ volatile("ldmxcsr %[ci]\n" ALL(L) "movl $1, %[parked]\n"
                     "1: pause\n cmpl $0, %[go]\n je 1b\n" ALL(S) "stmxcsr %[co]\n"
                     : [parked] "=m"(box.parked), [co] "=m"(box.csr_out)
                     : [in] "r"(box.in), [out] "r"(box.out), [ci] "m"(box.csr_in), [go] "m"(box.go)
                     : "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
                       "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
    __builtin_ia32_ldmxcsr(saved);
    return NULL;
}
static void setup(void) {
    box.csr_in = 0xff80; /* flush to zero, round towards zero, all masked */
    fill(box.in, sizeof box.in, 77);
    ZERO(pthread_create(&thread, NULL, spin, NULL));
    CHECK(WAIT_FOR(box.parked, 2000), "the thread did not start");
}
static void check(void) {
    CHECK(!box.go, "the thread has gone on already");
    box.go = 1;
    ZERO(pthread_join(thread, NULL));
    EQ(box.csr_out, box.csr_in);
    want_fill("xmm registers", box.out, sizeof box.out, 77);
}
static void mutate(void) {
    box.go = 1;
    TRY(pthread_join(thread, NULL));
}
