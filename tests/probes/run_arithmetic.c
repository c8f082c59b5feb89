/* Threads in the middle of floating point and integer work whose result is known. */
#include "run.h"

static double expect_d;
static uint64_t expect_i;
static double work_d(int n) {
    double a = 1, b = 0.5, c = 0;
    for (int i = 1; i < n; i++) a = a * 1.0000001 + b / i, c += a * b, b = b * 0.999999 + 0.0000005;
    return a + b + c;
}
static uint64_t work_i(int n) {
    uint64_t x = 88172645463325252ULL, s = 0;
    for (int i = 0; i < n; i++) x ^= x << 13, x ^= x >> 7, x ^= x << 17, s += x * i;
    return s;
}
static void round_of(int i) {
    if (i % 2) GOOD(work_d(200000) == expect_d);
    else GOOD(work_i(300000) == expect_i);
}
static void setup(void) {
    expect_d = work_d(200000), expect_i = work_i(300000);
    run_as_threads(2);
}
