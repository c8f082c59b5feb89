// PID 1 of a sandbox for tests: a PID and a mount namespace, and orders on standard input, one per line.
//   run <tab> stdin <tab> stdout <tab> cgroup.procs <tab> arg...   start a program; answers its pid
//   skeleton <tab> cgroup.procs <tab> pid                          a stopped child with that pid; answers it
//   last <tab> n                                                   write ns_last_pid; answers 0
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

static int put(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    ssize_t n = write(fd, text, strlen(text));
    close(fd);
    return n < 0 ? -1 : 0;
}

static void child_start(const char *cgroup) {
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    prctl(PR_SET_PDEATHSIG, 0);
    if (put(cgroup, "0")) _exit(120);
}

static int run(char **word, int words) {
    pid_t pid = fork();
    if (pid) return pid;
    child_start(word[3]);
    setsid();
    int in = open(word[1], O_RDWR), out = open(word[2], O_RDWR);
    if (in < 0 || out < 0) _exit(121);
    char name[4096];
    snprintf(name, sizeof name, "%s.err", word[2]);
    int err = open(name, O_WRONLY | O_CREAT | O_APPEND, 0600);
    dup2(in, 0); dup2(out, 1); dup2(err, 2);
    close(in); close(out); close(err);
    word[words] = NULL;
    execvp(word[4], word + 4);
    _exit(122);
}

static int set_last(int n) {
    char text[32];
    snprintf(text, sizeof text, "%d", n);
    return put("/proc/sys/kernel/ns_last_pid", text);
}

static int skeleton(char **word) {
    int want = atoi(word[2]);
    if (set_last(want - 1)) return -errno;
    pid_t pid = fork();
    if (pid == 0) {
        child_start(word[1]);
        for (int fd = 0; fd < 64; fd++) close(fd);
        raise(SIGSTOP);
        _exit(0);
    }
    int status;
    while (waitpid(pid, &status, WUNTRACED) < 0 && errno == EINTR) {}
    return pid;
}

static int obey(char *line) {
    char *word[64];
    int words = 0;
    for (char *w = strtok(line, "\t"); w && words < 63; w = strtok(NULL, "\t")) word[words++] = w;
    if (!words) return -EINVAL;
    if (!strcmp(word[0], "run")) return run(word, words);
    if (!strcmp(word[0], "skeleton")) return skeleton(word);
    if (!strcmp(word[0], "last")) return set_last(atoi(word[1])) ? -errno : 0;
    return -EINVAL;
}

static int init(void) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) || mount("proc", "/proc", "proc", 0, NULL)) return 1;
    sigset_t chld;
    sigemptyset(&chld);
    sigaddset(&chld, SIGCHLD);
    sigprocmask(SIG_BLOCK, &chld, NULL);
    int ended = signalfd(-1, &chld, SFD_CLOEXEC | SFD_NONBLOCK);
    char buffer[8192];
    size_t have = 0;
    for (;;) {
        struct pollfd fds[2] = {{0, POLLIN, 0}, {ended, POLLIN, 0}};
        if (poll(fds, 2, -1) < 0 && errno != EINTR) return 1;
        struct signalfd_siginfo info;
        while (read(ended, &info, sizeof info) > 0) {}
        while (waitpid(-1, NULL, WNOHANG) > 0) {}
        if (!(fds[0].revents & (POLLIN | POLLHUP))) continue;
        ssize_t n = read(0, buffer + have, sizeof buffer - have - 1);
        if (n <= 0) return 0;
        have += n;
        buffer[have] = 0;
        char *end;
        while ((end = strchr(buffer, '\n'))) {
            *end = 0;
            dprintf(1, "%d\n", obey(buffer));
            have -= end + 1 - buffer;
            memmove(buffer, end + 1, have + 1);
        }
    }
}

int main(void) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (unshare(CLONE_NEWPID | CLONE_NEWNS)) return perror("unshare"), 1;
    pid_t pid = fork();
    if (pid < 0) return 1;
    if (pid == 0) return init();
    dprintf(2, "%d\n", pid);
    int status;
    waitpid(pid, &status, 0);
    return 0;
}
