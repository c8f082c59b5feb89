/* Eventfds: counter, semaphore mode, shared with a child. */
#include "probe.h"

static int plain, sem, full;
static agent a;
static long work(int cmd) {
    if (cmd == 'w') EQ(eventfd_write(plain, 5), 0);
    return 0;
}
static void setup(void) {
    plain = MUST(eventfd(1000000007, EFD_NONBLOCK)), sem = MUST(eventfd(3, EFD_SEMAPHORE | EFD_NONBLOCK));
    full = MUST(eventfd(0, EFD_NONBLOCK));
    EQ(eventfd_write(full, 0xfffffffffffffffeULL), 0);
    a = agent_fork(work);
}
static void check(void) {
    eventfd_t v;
    ask(&a, 'w');
    EQ(eventfd_read(plain, &v), 0), EQ(v, 1000000012);
    EQ(eventfd_read(plain, &v), -1), EQ(errno, EAGAIN);
    for (int i = 0; i < 3; i++) EQ(eventfd_read(sem, &v), 0), EQ(v, 1);
    EQ(eventfd_read(sem, &v), -1);
    EQ(eventfd_write(full, 1), -1), EQ(eventfd_read(full, &v), 0), EQ(v, (long long)0xfffffffffffffffeULL);
}
static void mutate(void) {
    eventfd_t v;
    TRY(eventfd_read(sem, &v));
    TRY(eventfd_read(plain, &v));
    TRY(eventfd_read(full, &v));
}
