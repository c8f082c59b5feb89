/* POSIX timers of several clocks and kinds of notice: ids, what is left, period. */
#include "probe.h"

#define N 6
static int ids[N];
static const clockid_t clocks[N] = {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_PROCESS_CPUTIME_ID, CLOCK_MONOTONIC, CLOCK_MONOTONIC};
static int64_t started;

static void setup(void) {
    int spare;
    for (int i = 0; i < N; i++) {
        struct sigevent e = {.sigev_notify = i == 4 ? SIGEV_NONE : i == 5 ? SIGEV_THREAD_ID : SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + i, .sigev_value.sival_int = 1000 + i};
        e._sigev_un._tid = gettid();
        MUST(syscall(SYS_timer_create, clocks[i], &e, &ids[i]));
        if (i == 2) { /* ids with a hole */
            MUST(syscall(SYS_timer_create, CLOCK_MONOTONIC, NULL, &spare));
            MUST(syscall(SYS_timer_delete, spare));
        }
        struct itimerspec v = {{10 + i, 7}, {5000 + i, 0}};
        if (i != 1) MUST(syscall(SYS_timer_settime, ids[i], 0, &v, NULL));
    }
    started = now_ms();
}
static void check(void) {
    double gone = (now_ms() - started) / 1e3;
    for (int i = 0; i < N; i++) {
        struct itimerspec v;
        MUST(syscall(SYS_timer_gettime, ids[i], &v));
        double left = v.it_value.tv_sec + v.it_value.tv_nsec / 1e9;
        if (i == 1) {
            CHECK(left == 0, "the timer that was never armed has %f s left", left);
            continue;
        }
        CHECK(left <= 5000 + i + 0.01 && left >= 5000 + i - gone - 0.1, "timer %d has %f s left after %f s", i, left, gone);
        EQ(v.it_interval.tv_sec, 10 + i), EQ(v.it_interval.tv_nsec, 7);
    }
    /* the notice of each: made to fire */
    sigset_t s;
    sigemptyset(&s);
    for (int i = 0; i < N; i++) sigaddset(&s, SIGRTMIN + i);
    ZERO(pthread_sigmask(SIG_BLOCK, &s, NULL));
    for (int i = 0; i < N; i++) {
        if (i == 3 || i == 4) continue;
        struct itimerspec soon = {{0, 0}, {0, 1000000}};
        struct timespec limit = {2, 0};
        siginfo_t info;
        MUST(syscall(SYS_timer_settime, ids[i], 0, &soon, NULL));
        sigset_t one;
        sigemptyset(&one), sigaddset(&one, SIGRTMIN + i);
        CHECK(sigtimedwait(&one, &info, &limit) == SIGRTMIN + i, "timer %d gives no signal", i);
        EQ(info.si_code, SI_TIMER), EQ(info.si_value.sival_int, 1000 + i), EQ(info.si_timerid, ids[i]);
    }
}
static void mutate(void) {
    struct itimerspec v = {{1, 1}, {77, 0}};
    TRY(syscall(SYS_timer_delete, ids[0]));
    TRY(syscall(SYS_timer_settime, ids[1], 0, &v, NULL));
    TRY(syscall(SYS_timer_delete, ids[5]));
    int n;
    MUST(syscall(SYS_timer_create, CLOCK_MONOTONIC, NULL, &n));
}
