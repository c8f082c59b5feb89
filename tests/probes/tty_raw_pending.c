/* A pty in raw mode with input waiting. */
#include "probe.h"
#include <pty.h>

static int m, s;
static void setup(void) {
    struct termios t;
    MUST(openpty(&m, &s, NULL, NULL, NULL));
    MUST(tcgetattr(s, &t));
    cfmakeraw(&t);
    MUST(tcsetattr(s, TCSANOW, &t));
    EQ(write(m, "abc\003\004\n\0def", 10), 10);
    sleep_ms(10);
}
static void check(void) {
    int n;
    MUST(ioctl(s, FIONREAD, &n)), EQ(n, 10);
    want_data(s, "abc\003\004\n\0def", 10);
}
static void mutate(void) {
    char b[3];
    if (readable(s, 0)) TRY(read(s, b, 3));
    EQ(write(m, "xyz!", 4), 4);
}
