/* Two processes that send each other numbered messages over pipes and sockets: none lost, doubled or torn. */
#include "run.h"

static int to[2], from[2], s[2];
static void round_of(int i) {
    struct {
        long n, twice;
    } m, back;
    if (i) {
        GOOD(read(to[0], &m, sizeof m) == sizeof m);
        GOOD(m.twice == 2 * m.n && m.n == run->rounds[1]);
        GOOD(write(from[1], &m, sizeof m) == sizeof m);
        GOOD(recv(s[1], &back, sizeof back, 0) == sizeof back);
        GOOD(back.n == m.n);
    } else {
        m.n = run->rounds[0], m.twice = 2 * m.n;
        GOOD(write(to[1], &m, sizeof m) == sizeof m);
        GOOD(read(from[0], &back, sizeof back) == sizeof back);
        GOOD(back.n == m.n && back.twice == m.twice);
        GOOD(send(s[0], &m, sizeof m, 0) == sizeof m);
    }
}
static void setup(void) {
    MUST(pipe(to)), MUST(pipe(from)), MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, s));
    run_as_processes(2);
}
