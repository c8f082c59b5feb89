/* A socket that lies in its own peer's queue, and a listener that lies in a queue with a connection waiting. */
#include "probe.h"

static int s[2], q[2];
static void give(int over, int fd) {
    char c[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec v = {"x", 1};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = c, .msg_controllen = sizeof c};
    struct cmsghdr *h = CMSG_FIRSTHDR(&m);
    h->cmsg_level = SOL_SOCKET, h->cmsg_type = SCM_RIGHTS, h->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(h), &fd, sizeof fd);
    MUST(sendmsg(over, &m, 0));
}
static int take(int from) {
    char c[CMSG_SPACE(sizeof(int))], b;
    struct iovec v = {&b, 1};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = c, .msg_controllen = sizeof c};
    int fd = -1;
    CHECK(recvmsg(from, &m, MSG_DONTWAIT) == 1 && CMSG_FIRSTHDR(&m), "no descriptor is there");
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof fd);
    return fd;
}
static struct sockaddr_un at = {AF_UNIX, "l"};
static int client;
static void setup(void) {
    int l = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, s)), MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, q));
    give(s[0], s[1]);
    MUST(bind(l, (void *)&at, sizeof at)), MUST(listen(l, 2));
    client = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
    MUST(connect(client, (void *)&at, sizeof at));
    EQ(write(client, "hello", 5), 5);
    give(q[0], l);
    close(l);
}
static void check(void) {
    int again = take(s[1]), l = take(q[1]);
    EQ(write(s[0], "y", 1), 1), want_data(again, "y", 1);
    want_data(MUST(accept(l, NULL, NULL)), "hello", 5);
}
static void mutate(void) {
    take(s[1]);
    give(q[0], client);
}
