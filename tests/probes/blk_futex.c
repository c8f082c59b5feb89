/* Raw futex waits: private, shared, with a bit set, requeued. */
#include "probe.h"

static uint32_t *w;
static blocked b[4];
static long futex(uint32_t *at, int op, uint32_t v, unsigned long t, uint32_t *at2, uint32_t v3) { return syscall(SYS_futex, at, op, v, t, at2, v3); }
static long wait_private(void) { return futex(&w[0], FUTEX_WAIT_PRIVATE, 0, 0, NULL, 0); }
static long wait_shared(void) { return futex(&w[16], FUTEX_WAIT, 0, 0, NULL, 0); }
static long wait_bits(void) { return futex(&w[32], FUTEX_WAIT_BITSET_PRIVATE, 0, 0, NULL, 0x10); }
static long wait_moved(void) { return futex(&w[48], FUTEX_WAIT_PRIVATE, 0, 0, NULL, 0); }
static void setup(void) {
    w = map_shared(PAGE);
    block_in(&b[0], wait_private), block_in(&b[1], wait_shared), block_in(&b[2], wait_bits), block_in(&b[3], wait_moved);
}
static void check(void) {
    for (int i = 0; i < 4; i++) want_blocked(&b[i]);
    EQ(futex(&w[0], FUTEX_WAKE_PRIVATE, 1, 0, NULL, 0), 1), want_return(&b[0], 0);
    EQ(futex(&w[16], FUTEX_WAKE, 1, 0, NULL, 0), 1), want_return(&b[1], 0);
    EQ(futex(&w[32], FUTEX_WAKE_BITSET_PRIVATE, 1, 0, NULL, 0x01), 0);
    EQ(futex(&w[32], FUTEX_WAKE_BITSET_PRIVATE, 1, 0, NULL, 0x30), 1), want_return(&b[2], 0);
    EQ(futex(&w[48], FUTEX_CMP_REQUEUE_PRIVATE, 0, 1, &w[64], 0), 1);
    EQ(futex(&w[64], FUTEX_WAKE_PRIVATE, 1, 0, NULL, 0), 1), want_return(&b[3], 0);
}
static void mutate(void) {
    for (int i = 0; i < 4; i++) w[i * 16] = 1, futex(&w[i * 16], FUTEX_WAKE, 1, 0, NULL, 0), futex(&w[i * 16], FUTEX_WAKE_PRIVATE, 1, 0, NULL, 0);
    for (int i = 0; i < 4; i++) WAIT_FOR(b[i].done, 500);
}
