/* The general registers and flags of a thread that is stopped in the middle of user code. */
#include "probe.h"

static struct {
    uint64_t in[14], out[14];
    volatile int go, parked;
} box;
static pthread_t thread;

static void *spin(void *unused) {
    (void)unused;
    __asm__ volatile("sub $256, %%rsp\n push %%rbp\n push %%rbx\n"
                     "mov 0(%%rax), %%rbx\n mov 8(%%rax), %%rcx\n mov 16(%%rax), %%rdx\n mov 24(%%rax), %%rsi\n"
                     "mov 32(%%rax), %%rdi\n mov 40(%%rax), %%r8\n mov 48(%%rax), %%r9\n mov 56(%%rax), %%r10\n"
                     "mov 64(%%rax), %%r11\n mov 72(%%rax), %%r12\n mov 80(%%rax), %%r13\n mov 88(%%rax), %%r14\n"
                     "mov 96(%%rax), %%r15\n mov 104(%%rax), %%rbp\n std\n"
                     "movl $1, 228(%%rax)\n"
                     "1: pause\n cmpl $0, 224(%%rax)\n je 1b\n"
                     "mov %%rbx, 112(%%rax)\n mov %%rcx, 120(%%rax)\n mov %%rdx, 128(%%rax)\n mov %%rsi, 136(%%rax)\n"
                     "mov %%rdi, 144(%%rax)\n mov %%r8, 152(%%rax)\n mov %%r9, 160(%%rax)\n mov %%r10, 168(%%rax)\n"
                     "mov %%r11, 176(%%rax)\n mov %%r12, 184(%%rax)\n mov %%r13, 192(%%rax)\n mov %%r14, 200(%%rax)\n"
                     "mov %%r15, 208(%%rax)\n mov %%rbp, 216(%%rax)\n"
                     "pushfq\n pop %%rcx\n cld\n mov %%rcx, 0(%%rax)\n"
                     "pop %%rbx\n pop %%rbp\n add $256, %%rsp\n"
                     :
                     : "a"(&box)
                     : "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "memory", "cc");
    return NULL;
}
static void setup(void) {
    for (int i = 0; i < 14; i++) box.in[i] = mix(i + 1);
    ZERO(pthread_create(&thread, NULL, spin, NULL));
    CHECK(WAIT_FOR(box.parked, 2000), "the thread did not start");
}
static void check(void) {
    CHECK(!box.go && !box.out[0], "the thread has gone on already");
    box.go = 1;
    ZERO(pthread_join(thread, NULL));
    for (int i = 0; i < 14; i++)
        CHECK(box.out[i] == mix(i + 1), "register %d is %lx", i, (long)box.out[i]);
    CHECK(box.in[0] & 0x400, "the direction flag is lost: %lx", (long)box.in[0]);
}
static void mutate(void) {
    box.go = 1;
    TRY(pthread_join(thread, NULL));
    box.out[3] = 0;
}
