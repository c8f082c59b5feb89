/* Netlink sockets with nothing waiting in them: bound by itself, and unbound. */
#include "probe.h"
#include <linux/netlink.h>
#include <linux/rtnetlink.h>

static int idle, fresh;
static struct sockaddr_nl at = {.nl_family = AF_NETLINK};
static void question(int fd) {
    struct {
        struct nlmsghdr h;
        struct rtgenmsg g;
    } q = {{sizeof q, RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, 9, 0}, {AF_UNSPEC}};
    EQ(send(fd, &q, sizeof q, 0), sizeof q);
}
static void setup(void) {
    socklen_t n = sizeof at;
    idle = MUST(socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE)), fresh = MUST(socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE));
    MUST(bind(idle, (void *)&at, sizeof at)), MUST(getsockname(idle, (void *)&at, &n));
}
static void check(void) {
    char b[32768];
    struct sockaddr_nl g;
    socklen_t n = sizeof g;
    MUST(getsockname(idle, (void *)&g, &n)), EQ(g.nl_pid, at.nl_pid);
    question(fresh);
    CHECK(readable(fresh, 500), "no answer");
    CHECK(recv(fresh, b, sizeof b, 0) > 0 && ((struct nlmsghdr *)b)->nlmsg_seq == 9, "the answer is wrong");
    question(idle);
    CHECK(readable(idle, 500), "no answer to a new question");
}
static void mutate(void) {
    char b[32768];
    question(fresh);
    /* To the end: a message of the kernel that waits is refused (refuse_netlink). */
    while (readable(fresh, 20)) TRY(recv(fresh, b, sizeof b, MSG_DONTWAIT));
    close(idle);
}
