/* ymm0-15 of a thread that is blocked in a system call: the kernel keeps vector registers across it. */
#include "probe.h"

static uint64_t in[64], out[64];
static int done, pipefd[2];
static pthread_t thread;
static volatile pid_t tid;
static char byte;

#define L(i) "vmovdqu 32*" #i "(%[in]), %%ymm" #i "\n"
#define S(i) "vmovdqu %%ymm" #i ", 32*" #i "(%[out])\n"
#define ALL(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)

__attribute__((target("avx"))) static void *park(void *unused) {
    (void)unused;
    long ret;
    tid = syscall(SYS_gettid);
    __asm__ volatile(ALL(L) "syscall\n" ALL(S) "vzeroupper\n"
                     : "=a"(ret)
                     : "a"((long)SYS_read), "D"((long)pipefd[0]), "S"(&byte), "d"(1L), [in] "r"(in), [out] "r"(out)
                     : "memory", "cc", "rcx", "r11", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8",
                       "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
    done = ret == 1 ? 1 : -1;
    return NULL;
}
static void setup(void) {
    if (!__builtin_cpu_supports("avx")) skip("this processor has no AVX");
    fill(in, sizeof in, 5);
    MUST(pipe(pipefd));
    ZERO(pthread_create(&thread, NULL, park, NULL));
    CHECK(WAIT_FOR(tid, 2000), "the thread did not start");
    sleep_ms(5);
    wait_state(tid, 'S');
}
static void check(void) {
    CHECK(!done, "the call came back by itself: %d", done);
    EQ(write(pipefd[1], "x", 1), 1);
    ZERO(pthread_join(thread, NULL));
    EQ(done, 1);
    want_fill("ymm registers", out, sizeof out, 5);
}
static void mutate(void) {
    TRY(write(pipefd[1], "x", 1));
    TRY(pthread_join(thread, NULL));
}
