// Answers each byte of its input with what a handler of SIGUSR1 changes behind its back.
#include <signal.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>
static void handler(int n) { (void)n; umask(umask(0) + 1); signal(SIGUSR2, SIG_IGN); }
int main(void) {
    struct sigaction act = { .sa_handler = handler, .sa_flags = SA_RESTART };
    sigaction(SIGUSR1, &act, 0);
    umask(0);
    char c;
    while (read(0, &c, 1) == 1) {
        struct sigaction now;
        sigaction(SIGUSR2, 0, &now);
        mode_t mask = umask(0);
        umask(mask);
        printf("%o %d\n", mask, now.sa_handler == SIG_IGN);
        fflush(stdout);
    }
}
