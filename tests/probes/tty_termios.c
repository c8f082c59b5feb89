/* A pty: line settings, window size, exclusive and packet mode. */
#include "probe.h"
#include <pty.h>

static int m, s;
static struct termios want;
static void setup(void) {
    struct winsize ws = {33, 101, 5, 6};
    MUST(openpty(&m, &s, NULL, NULL, &ws));
    MUST(tcgetattr(s, &want));
    cfmakeraw(&want);
    want.c_cc[VMIN] = 3, want.c_cc[VTIME] = 7, want.c_cc[VINTR] = 5;
    want.c_lflag |= ISIG;
    cfsetspeed(&want, B9600);
    MUST(tcsetattr(s, TCSANOW, &want));
    MUST(tcgetattr(s, &want));
}
static void check(void) {
    struct termios t;
    struct winsize w;
    MUST(tcgetattr(m, &t));
    CHECK(t.c_iflag == want.c_iflag && t.c_oflag == want.c_oflag && t.c_cflag == want.c_cflag && t.c_lflag == want.c_lflag, "flags are %x %x %x %x", t.c_iflag, t.c_oflag, t.c_cflag, t.c_lflag);
    CHECK(!memcmp(t.c_cc, want.c_cc, sizeof t.c_cc), "control characters differ");
    MUST(ioctl(s, TIOCGWINSZ, &w));
    EQ(w.ws_row, 33), EQ(w.ws_col, 101), EQ(w.ws_xpixel, 5), EQ(w.ws_ypixel, 6);
    EQ(write(m, "raw\r\003", 5), 5), want_data(s, "raw\r\003", 5);
    EQ(write(s, "out\n", 4), 4), want_data(m, "out\n", 4);
}
static void mutate(void) {
    struct termios t;
    struct winsize w = {1, 2, 3, 4};
    MUST(tcgetattr(s, &t));
    t.c_lflag ^= ICANON | ECHO, t.c_oflag |= OPOST | ONLCR, t.c_cc[VMIN] = 1;
    MUST(tcsetattr(s, TCSANOW, &t)), MUST(ioctl(m, TIOCSWINSZ, &w));
}
