/* zmm0-31 and the mask registers of a thread stopped in the middle of user code. */
#include "probe.h"

static struct {
    volatile int go, parked;
    uint64_t in[256], out[256], k_in, k_out;
} box;
static pthread_t thread;

#define L(i) "vmovdqu64 64*" #i "(%[in]), %%zmm" #i "\n"
#define S(i) "vmovdqu64 %%zmm" #i ", 64*" #i "(%[out])\n"
#define ALL(X)                                                                                                       \
    X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15) X(16) X(17) X(18) X(19)       \
        X(20) X(21) X(22) X(23) X(24) X(25) X(26) X(27) X(28) X(29) X(30) X(31)

__attribute__((target("avx512f,avx512bw"))) static void *spin(void *unused) {
    (void)unused;
    __asm__ volatile(ALL(L) "kmovq %[ki], %%k5\n movl $1, %[parked]\n"
                            "1: pause\n cmpl $0, %[go]\n je 1b\n" ALL(S) "kmovq %%k5, %[ko]\n vzeroupper\n"
                     : [parked] "=m"(box.parked), [ko] "=m"(box.k_out)
                     : [in] "r"(box.in), [out] "r"(box.out), [ki] "m"(box.k_in), [go] "m"(box.go)
                     : "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
                       "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
    return NULL;
}
static void setup(void) {
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw")) skip("this processor has no AVX-512");
    fill(box.in, sizeof box.in, 9);
    box.k_in = mix(3);
    ZERO(pthread_create(&thread, NULL, spin, NULL));
    CHECK(WAIT_FOR(box.parked, 2000), "the thread did not start");
}
static void check(void) {
    CHECK(!box.go, "the thread has gone on already");
    box.go = 1;
    ZERO(pthread_join(thread, NULL));
    want_fill("zmm registers", box.out, sizeof box.out, 9);
    EQ(box.k_out, box.k_in);
}
static void mutate(void) {
    box.go = 1;
    TRY(pthread_join(thread, NULL));
}
