/* A pty with input not yet read (a whole line and half of one) and output not yet taken. */
#include "probe.h"
#include <pty.h>

static int m, s;
static void setup(void) {
    struct termios t;
    MUST(openpty(&m, &s, NULL, NULL, NULL));
    MUST(tcgetattr(s, &t));
    t.c_lflag &= ~ECHO;
    MUST(tcsetattr(s, TCSANOW, &t));
    EQ(write(m, "a whole line\nhalf", 17), 17);
    EQ(write(s, "output\n", 7), 7);
    sleep_ms(10);
}
static void check(void) {
    char b[64] = {0};
    want_data(m, "output\r\n", 8);
    CHECK(readable(s, 1000), "no input");
    EQ(read(s, b, 64), 13);
    CHECK(!strcmp(b, "a whole line\n"), "the line is '%s'", b);
    EQ(readable(s, 20), 0);
    EQ(write(m, " of it\n", 7), 7);
    CHECK(readable(s, 1000), "no second line");
    memset(b, 0, 64);
    MUST(read(s, b, 64));
    CHECK(!strcmp(b, "half of it\n"), "the second line is '%s'", b);
}
static void mutate(void) {
    char b[64];
    if (readable(s, 0)) TRY(read(s, b, 64));
    EQ(write(s, "more\n", 5), 5);
    MUST(tcflush(s, TCIFLUSH));
}
