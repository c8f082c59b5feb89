/* Descriptors on their way in a socket's queue (SCM_RIGHTS), one of them open nowhere else. */
#include "probe.h"

static int s[2];
static void give(int *fds, int n, const char *text) {
    char c[CMSG_SPACE(sizeof(int) * 4)] = {0};
    struct iovec v = {(void *)text, strlen(text)};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = c, .msg_controllen = CMSG_SPACE(sizeof(int) * n)};
    struct cmsghdr *h = CMSG_FIRSTHDR(&m);
    h->cmsg_level = SOL_SOCKET, h->cmsg_type = SCM_RIGHTS, h->cmsg_len = CMSG_LEN(sizeof(int) * n);
    memcpy(CMSG_DATA(h), fds, sizeof(int) * n);
    MUST(sendmsg(s[0], &m, 0));
}
static int take(int *fds, const char *text) {
    char c[CMSG_SPACE(sizeof(int) * 4)], b[64] = {0};
    struct iovec v = {b, sizeof b - 1};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = c, .msg_controllen = sizeof c};
    MUST(recvmsg(s[1], &m, MSG_DONTWAIT));
    CHECK(!strcmp(b, text), "the message is '%s', not '%s'", b, text);
    struct cmsghdr *h = CMSG_FIRSTHDR(&m);
    CHECK(h && h->cmsg_type == SCM_RIGHTS, "no descriptors came with '%s'", text);
    memcpy(fds, CMSG_DATA(h), h->cmsg_len - CMSG_LEN(0));
    return (h->cmsg_len - CMSG_LEN(0)) / sizeof(int);
}
static void setup(void) {
    int p[2], f = MUST(open("f", O_RDWR | O_CREAT, 0644));
    MUST(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, s)), MUST(pipe(p));
    EQ(write(f, "file content", 12), 12), MUST(lseek(f, 5, SEEK_SET)), EQ(write(p[1], "in the pipe", 11), 11);
    give((int[]){f, p[0], p[1]}, 3, "first");
    give((int[]){p[1]}, 1, "second");
    close(f), close(p[0]), close(p[1]);
}
static void check(void) {
    int a[4], b[4];
    EQ(take(a, "first"), 3), EQ(take(b, "second"), 1);
    EQ(lseek(a[0], 0, SEEK_CUR), 5), want_data(a[0], "content", 7);
    EQ(write(b[0], "!", 1), 1);
    want_data(a[1], "in the pipe!", 12);
}
static void mutate(void) {
    int a[4];
    if (readable(s[1], 0)) take(a, "first");
    give(s, 1, "third");
}
