/* TCP connections that are over, both ends having said so, of which one or both are still held, with data to be read
 * at an end that the kernel takes for closed; beside one that goes on. */
#include "probe.h"
#include "sock_tcp.h"

static int c2, s2, c3, ended;
static void setup(void) {
    connect_pair();
    close(listener);
    c2 = client, s2 = server;
    EQ(write(s2, "last words", 10), 10), EQ(write(c2, "and mine", 8), 8);
    MUST(shutdown(c2, SHUT_WR)), MUST(shutdown(s2, SHUT_WR));
    connect_pair();
    EQ(write(server, "farewell", 8), 8);
    MUST(shutdown(client, SHUT_WR));
    ended = client, close(server), close(listener);
    connect_pair(), close(listener);
    c3 = client, EQ(write(server, "live", 4), 4);
    sleep_ms(20);
}
static void over(int fd, const char *text) {
    char c;
    want_data(fd, text, strlen(text));
    EQ(read(fd, &c, 1), 0), EQ(read(fd, &c, 1), 0);
}
static void check(void) {
    over(c2, "last words"), over(s2, "and mine");
    EQ(send(c2, "x", 1, MSG_NOSIGNAL), -1), EQ(errno, EPIPE);
    over(ended, "farewell");
    want_data(c3, "live", 4), EQ(write(c3, "on", 2), 2), want_data(server, "on", 2);
}
static void mutate(void) {
    char b[4];
    TRY(recv(c2, b, 4, MSG_DONTWAIT)), TRY(recv(ended, b, 4, MSG_DONTWAIT)), TRY(recv(c3, b, 4, MSG_DONTWAIT));
    close(s2);
}
