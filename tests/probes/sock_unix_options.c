/* Options, credentials of the peer, and flags of unix sockets. */
#include "probe.h"

static int s[2];
static struct ucred want;
static int snd;
static int get(int opt) {
    int v = -1;
    socklen_t n = sizeof v;
    MUST(getsockopt(s[0], SOL_SOCKET, opt, &v, &n));
    return v;
}
static void setup(void) {
    int on = 1, size = 100000;
    struct timeval t = {17, 0};
    socklen_t n = sizeof want;
    MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, s));
    MUST(setsockopt(s[0], SOL_SOCKET, SO_PASSCRED, &on, sizeof on)), MUST(setsockopt(s[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof size));
    MUST(setsockopt(s[0], SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t)), MUST(setsockopt(s[0], SOL_SOCKET, SO_RCVLOWAT, &on, sizeof on));
    snd = get(SO_SNDBUF);
    MUST(getsockopt(s[0], SOL_SOCKET, SO_PEERCRED, &want, &n));
}
static void check(void) {
    struct ucred c;
    struct timeval t;
    socklen_t n = sizeof c;
    MUST(getsockopt(s[0], SOL_SOCKET, SO_PEERCRED, &c, &n));
    EQ(c.pid, want.pid), EQ(c.uid, want.uid), EQ(c.gid, want.gid);
    n = sizeof t;
    MUST(getsockopt(s[0], SOL_SOCKET, SO_RCVTIMEO, &t, &n)), EQ(t.tv_sec, 17);
    EQ(get(SO_PASSCRED), 1), EQ(get(SO_SNDBUF), snd), EQ(get(SO_TYPE), SOCK_STREAM);
    EQ(fcntl(s[0], F_GETFL) & O_NONBLOCK, O_NONBLOCK), EQ(fcntl(s[0], F_GETFD), FD_CLOEXEC);
}
static void mutate(void) {
    int off = 0, size = 5000;
    MUST(setsockopt(s[0], SOL_SOCKET, SO_PASSCRED, &off, sizeof off)), MUST(setsockopt(s[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof size));
    MUST(fcntl(s[0], F_SETFL, 0)), MUST(fcntl(s[0], F_SETFD, 0));
}
