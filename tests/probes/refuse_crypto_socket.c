/* A socket of the kernel's cryptography, in the middle of a digest. */
#include "probe.h"
#include <linux/if_alg.h>

static int op;
static void setup(void) {
    struct sockaddr_alg a = {.salg_family = AF_ALG, .salg_type = "hash", .salg_name = "sha256"};
    int fd = socket(AF_ALG, SOCK_SEQPACKET, 0);
    if (fd < 0 || bind(fd, (void *)&a, sizeof a) < 0) skip("no crypto sockets here");
    op = MUST(accept(fd, NULL, 0));
    EQ(send(op, "abc", 3, MSG_MORE), 3);
}
static void check(void) {
    static const unsigned char want[4] = {0xba, 0x78, 0x16, 0xbf};
    unsigned char got[32];
    EQ(send(op, "", 0, 0), 0), EQ(read(op, got, 32), 32);
    CHECK(!memcmp(got, want, 4), "the digest begins with %02x%02x", got[0], got[1]);
}
static void mutate(void) { EQ(send(op, "d", 1, MSG_MORE), 1); }
