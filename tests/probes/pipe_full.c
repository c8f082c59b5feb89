/* A full pipe with a writer blocked on it, and pipes of other sizes. */
#include "probe.h"

static int p[2], small[2];
static blocked w;
static char *data;
static long total;
static long push(void) { return write(p[1], data, 3000); }
static void setup(void) {
    data = map_anon(1 << 20);
    fill(data, 1 << 20, 29);
    MUST(pipe(p)), MUST(pipe(small));
    EQ(fcntl(small[1], F_SETPIPE_SZ, 8192), 8192);
    MUST(fcntl(p[1], F_SETFL, O_NONBLOCK));
    for (long n; (n = write(p[1], data + total, 1 << 20)) > 0;) total += n;
    MUST(fcntl(p[1], F_SETFL, 0));
    block_in(&w, push);
}
static void check(void) {
    EQ(fcntl(small[0], F_GETPIPE_SZ), 8192), EQ(fcntl(p[0], F_GETPIPE_SZ), 65536);
    want_blocked(&w);
    want_data(p[0], data, total);
    want_data(p[0], data, 3000);
    want_return(&w, 3000);
    EQ(readable(p[0], 0), 0);
}
static void mutate(void) {
    char b[9000];
    if (readable(p[0], 0)) EQ(read(p[0], b, 9000), 9000); /* unless the check has read it */
    MUST(fcntl(small[0], F_SETPIPE_SZ, 65536));
    WAIT_FOR(w.done, 1000);
}
