/* 200 files open for writing, all of them changed, some closed. */
#include "probe.h"

#define N 200
static int fd[N];
static void name(char *b, int i) { snprintf(b, 16, "f%d", i); }
static void setup(void) {
    char n[16];
    for (int i = 0; i < N; i++) {
        name(n, i);
        fd[i] = MUST(open(n, O_RDWR | O_CREAT | (i % 2 ? O_APPEND : 0), 0644));
        EQ(write(fd[i], n, strlen(n)), strlen(n));
    }
}
static void check(void) {
    char n[16], w[17];
    for (int i = 0; i < N; i++) {
        name(n, i);
        want_file(n, n, strlen(n));
        EQ(write(fd[i], "+", 1), 1);
        snprintf(w, sizeof w, "%s+", n);
        want_file(n, w, strlen(w));
    }
}
static void mutate(void) {
    char n[16];
    for (int i = 0; i < N; i++) {
        name(n, i);
        EQ(write(fd[i], "junk", 4), 4);
        if (i % 5 == 0) close(fd[i]);
        if (i % 7 == 0) unlink(n);
    }
}
