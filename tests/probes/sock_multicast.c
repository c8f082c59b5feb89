/* Membership in a multicast group, and options of UDP. */
#include "probe.h"

static int fd;
static int on = 1, ttl = 9;
static struct ip_mreqn group;
static int listed(void) {
    char line[256];
    int n = 0;
    FILE *f = fopen("/proc/self/net/igmp", "re");
    if (!f) return -1;
    while (fgets(line, sizeof line, f)) n += strstr(line, "050505EF") != NULL;
    fclose(f);
    return n;
}
static void setup(void) {
    group.imr_multiaddr.s_addr = inet_addr("239.5.5.5"), group.imr_address.s_addr = htonl(INADDR_LOOPBACK);
    fd = MUST(socket(AF_INET, SOCK_DGRAM, 0));
    if (setsockopt(fd, IPPROTO_IP, IP_ADD_MEMBERSHIP, &group, sizeof group) < 0 || listed() < 1) skip("no multicast here");
    MUST(setsockopt(fd, SOL_SOCKET, SO_BROADCAST, &on, sizeof on)), MUST(setsockopt(fd, IPPROTO_IP, IP_TTL, &ttl, sizeof ttl)), MUST(setsockopt(fd, IPPROTO_IP, IP_PKTINFO, &on, sizeof on));
}
static void check(void) {
    int v;
    socklen_t n = sizeof v;
    MUST(getsockopt(fd, SOL_SOCKET, SO_BROADCAST, &v, &n)), EQ(v, 1);
    MUST(getsockopt(fd, IPPROTO_IP, IP_TTL, &v, &n)), EQ(v, 9);
    MUST(getsockopt(fd, IPPROTO_IP, IP_PKTINFO, &v, &n)), EQ(v, 1);
    EQ(setsockopt(fd, IPPROTO_IP, IP_ADD_MEMBERSHIP, &group, sizeof group), -1), EQ(errno, EADDRINUSE);
}
static void mutate(void) {
    int off = 0;
    MUST(setsockopt(fd, IPPROTO_IP, IP_DROP_MEMBERSHIP, &group, sizeof group)), MUST(setsockopt(fd, SOL_SOCKET, SO_BROADCAST, &off, sizeof off)), MUST(setsockopt(fd, IPPROTO_IP, IP_TTL, &on, sizeof on));
}
