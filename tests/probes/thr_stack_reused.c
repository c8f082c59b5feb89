/* Memory that became the stack of a thread since: when that thread is ended, nothing of it (its rseq area, the word
 * cleared at its end, its robust list) may be written into what is there again. */
#include "probe.h"

#define N (64 * PAGE)
static char *data, *empty;
static void *body(void *unused) {
    for (;;) pause();
    return unused;
}
static void setup(void) {
    data = map_anon(N), empty = map_anon(N);
    fill(data, N, 8);
}
static void check(void) {
    want_fill("the data", data, N, 8);
    want_zero("the empty region", empty, N);
}
static void become_stack(char *at) {
    pthread_attr_t a;
    pthread_t t;
    MUST(madvise(at, N, MADV_DONTNEED));
    pthread_attr_init(&a);
    ZERO(pthread_attr_setstack(&a, at, N));
    ZERO(pthread_create(&t, &a, body, NULL));
}
static void mutate(void) {
    become_stack(data), become_stack(empty);
    sleep_ms(10);
}
