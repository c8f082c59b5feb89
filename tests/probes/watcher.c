/* Holds everything that could notice a checkpoint, and looks closely: a unix listener with a full backlog, inotify
 * with queued events, FIFO peers, every kind of lock, an O_APPEND log, shared mappings, 100 files open for writing,
 * timers, and its own files in /proc. Several threads are blocked; none may come back. */
#include "probe.h"
#include <sys/inotify.h>
#include <sys/timerfd.h>

#define FILES 100
static int listener, clients[16], clients_n, ino, ino_wd, fifo[2], flocked, posix, ofd, log_fd, file[FILES], tfd, ep, ev;
static char *shared, *map_private;
static struct stat file_st[FILES], log_st, sock_st, dir_st;
static blocked b[5];
static agent peer;
#define PROC_MAX (1 << 18)
static char proc_before[4][PROC_MAX], proc_now[PROC_MAX]; /* not on the heap, which is looked at */
static const char *proc_files[4] = {"/proc/self/maps", "/proc/self/limits", "/proc/self/mountinfo", "/proc/self/cgroup"};
static char fds_before[4096], tasks_before[1024], status_before[2048];
static int eintr_pipe[2], lock_wait, events_bytes;

static void slurp(const char *path, char *t) {
    memset(t, 0, PROC_MAX);
    int fd = MUST(open(path, O_RDONLY | O_CLOEXEC));
    size_t n = 0;
    for (ssize_t r; (r = read(fd, t + n, PROC_MAX - 1 - n)) > 0;) n += r;
    close(fd);
}
static void list(const char *dir, char *out, size_t size, int links) {
    DIR *d = opendir(dir);
    CHECK(d, "cannot read %s", dir);
    out[0] = 0;
    size_t n = 0;
    for (struct dirent *e; (e = readdir(d));) {
        char path[300], to[200] = {0};
        snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
        if (links && (e->d_name[0] == '.' || atoi(e->d_name) == dirfd(d) || readlink(path, to, sizeof to - 1) < 0)) continue;
        n += snprintf(out + n, size - n, "%s=%s ", e->d_name, strrchr(to, '/') ? strrchr(to, '/') : to);
        if (n >= size) break;
    }
    closedir(d);
}
/* What the kernel says of us that must not move: identity, signals, tracer, threads. */
static void status(char *out, size_t size) {
    static const char *keys[] = {"Name", "Umask", "Tgid", "Pid", "PPid", "TracerPid", "Uid", "Gid", "FDSize", "Groups", "NSpid", "VmLck", "Threads",
                                 "SigQ", "SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp", "Cpus_allowed"};
    size_t n = 0;
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) n += snprintf(out + n, size - n, "%s:%s;", keys[i], status_line(getpid(), keys[i]));
}
static long b_read(void) { return read(eintr_pipe[0], &(char){0}, 1); }
static long b_accept(void) { return epoll_wait(ep, &(struct epoll_event){0}, 1, 1000000000); }
static long b_flock(void) { return flock(lock_wait, LOCK_EX); }
static long b_pause(void) { return pause(); }
static long b_sleep(void) { return nanosleep(&(struct timespec){1000000, 0}, NULL); }
static long work(int cmd) {
    if (cmd == 'o') return MUST(open("fifo", O_WRONLY));
    if (cmd == 'p') return getppid();
    return 0;
}
static void setup(void) {
    struct sockaddr_un at = {AF_UNIX, "sock"};
    MUST(mkdir("watched", 0755)), MUST(mkfifo("fifo", 0600));
    listener = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
    MUST(bind(listener, (void *)&at, sizeof at)), MUST(listen(listener, 5));
    for (; clients_n < 16; clients_n++) { /* until it is full */
        int c = MUST(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0));
        if (connect(c, (void *)&at, sizeof at) < 0) {
            close(c);
            break;
        }
        clients[clients_n] = c;
        dprintf(c, "client %d", clients_n);
    }
    ino = MUST(inotify_init1(IN_NONBLOCK));
    ino_wd = MUST(inotify_add_watch(ino, "watched", IN_ALL_EVENTS));
    MUST(inotify_add_watch(ino, ".", IN_ALL_EVENTS | IN_UNMOUNT));
    MUST(mkdir("watched/made", 0755));
    fifo[0] = MUST(open("fifo", O_RDONLY | O_NONBLOCK));
    peer = agent_fork(work);
    ask(&peer, 'o');
    fifo[1] = MUST(open("fifo", O_WRONLY));
    EQ(write(fifo[1], "in the fifo", 11), 11);
    flocked = MUST(open("l1", O_RDWR | O_CREAT, 0644)), posix = MUST(open("l2", O_RDWR | O_CREAT, 0644)), ofd = MUST(open("l3", O_RDWR | O_CREAT, 0644));
    lock_wait = MUST(open("l1", O_RDWR));
    struct flock l = {.l_type = F_WRLCK, .l_len = 10}, r = {.l_type = F_RDLCK, .l_start = 20, .l_len = 10};
    MUST(flock(flocked, LOCK_EX)), MUST(fcntl(posix, F_SETLK, &l)), MUST(fcntl(posix, F_SETLK, &r)), MUST(fcntl(ofd, F_OFD_SETLK, &l));
    log_fd = MUST(open("log", O_WRONLY | O_CREAT | O_APPEND, 0644));
    EQ(write(log_fd, "begin\n", 6), 6);
    int sf = MUST(open("shared", O_RDWR | O_CREAT, 0644));
    MUST(ftruncate(sf, 16 * PAGE));
    shared = MUST(mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, sf, 0));
    fill(shared, 16 * PAGE, 1);
    map_private = MUST(mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, sf, 0));
    for (int i = 0; i < FILES; i++) {
        char n[16];
        snprintf(n, sizeof n, "file%d", i);
        file[i] = MUST(open(n, O_RDWR | O_CREAT, 0644));
        EQ(write(file[i], n, strlen(n)), strlen(n));
        MUST(fstat(file[i], &file_st[i]));
    }
    tfd = MUST(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK)), ev = MUST(eventfd(0, EFD_NONBLOCK)), ep = MUST(epoll_create1(0));
    struct itimerspec far = {{0, 0}, {100000, 0}};
    struct itimerval farther = {{0, 0}, {200000, 0}};
    MUST(timerfd_settime(tfd, 0, &far, NULL)), MUST(setitimer(ITIMER_REAL, &farther, NULL));
    MUST(epoll_ctl(ep, EPOLL_CTL_ADD, tfd, &(struct epoll_event){.events = EPOLLIN})), MUST(epoll_ctl(ep, EPOLL_CTL_ADD, ev, &(struct epoll_event){.events = EPOLLIN | EPOLLET}));
    MUST(pipe(eintr_pipe));
    block_in(&b[0], b_read), block_in(&b[1], b_accept), block_in(&b[2], b_flock), block_in(&b[3], b_pause), block_in(&b[4], b_sleep);
    sleep_ms(10);
    MUST(ioctl(ino, FIONREAD, &events_bytes));
    MUST(stat("log", &log_st)), MUST(stat("sock", &sock_st)), MUST(stat(".", &dir_st));
    for (int i = 0; i < 4; i++) slurp(proc_files[i], proc_before[i]);
    for (int i = 0; i < 2; i++) { /* the second time the allocator has settled */
        list("/proc/self/fd", fds_before, sizeof fds_before, 1), list("/proc/self/task", tasks_before, sizeof tasks_before, 0), status(status_before, sizeof status_before);
        for (int k = 0; k < 4; k++) slurp(proc_files[k], proc_before[k]);
    }
}
static void same_stat(const char *n, const struct stat *w) {
    struct stat g;
    MUST(stat(n, &g));
    CHECK(g.st_ino == w->st_ino && g.st_dev == w->st_dev && !memcmp(&g.st_mtim, &w->st_mtim, 16) && !memcmp(&g.st_ctim, &w->st_ctim, 16) && g.st_size == w->st_size, "%s has another inode, size or time", n);
}
static void same_proc(void) {
    char now[4096];
    status(now, sizeof now);
    for (char *w = status_before, *g = now; *w || *g; w++, g++)
        CHECK(*w == *g, "/proc/self/status: '%.40s' became '%.40s'", w - (w - status_before > 20 ? 20 : w - status_before), g - (g - now > 20 ? 20 : g - now));
    list("/proc/self/task", now, sizeof now, 0);
    CHECK(!strcmp(now, tasks_before), "threads are %s, were %s", now, tasks_before);
    list("/proc/self/fd", now, sizeof now, 1);
    CHECK(!strcmp(now, fds_before), "descriptors are %.150s, were %.150s", now, fds_before);
    for (int i = 0; i < 4; i++) {
        char *t = proc_now, *was = proc_before[i];
        slurp(proc_files[i], t);
        for (size_t k = 0; t[k] || was[k]; k++)
            CHECK(t[k] == was[k], "%s differs at byte %zu: '%.60s', was '%.60s'", proc_files[i], k, t + (k > 30 ? k - 30 : 0), was + (k > 30 ? k - 30 : 0));
    }
}
static void check(void) {
    for (int i = 0; i < 5; i++) want_blocked(&b[i]);
    int bytes; /* every event of this directory is watched: even an open would be seen */
    MUST(ioctl(ino, FIONREAD, &bytes));
    CHECK(bytes == events_bytes, "there are %d bytes of inotify events, not %d", bytes, events_bytes);
    same_proc();
    same_stat("log", &log_st), same_stat("sock", &sock_st), same_stat(".", &dir_st);
    for (int i = 0; i < FILES; i++) {
        char n[16];
        snprintf(n, sizeof n, "file%d", i);
        same_stat(n, &file_st[i]);
        EQ(lseek(file[i], 0, SEEK_CUR), strlen(n));
    }
    want_fill("the shared mapping", shared, 16 * PAGE, 1), want_fill("the private mapping", map_private, 16 * PAGE, 1);
    EQ(readable(tfd, 0), 0), EQ(readable(ev, 0), 0), EQ(ask(&peer, 'p'), getpid());
    struct itimerspec left;
    MUST(timerfd_gettime(tfd, &left));
    CHECK(left.it_value.tv_sec > 90000, "the timer has only %ld s left", left.it_value.tv_sec);
    int other = MUST(open("l1", O_RDWR | O_CLOEXEC));
    EQ(flock(other, LOCK_EX | LOCK_NB), -1);
    close(other);
    other = MUST(open("l3", O_RDWR | O_CLOEXEC));
    struct flock l = {.l_type = F_WRLCK, .l_len = 10};
    MUST(fcntl(other, F_OFD_GETLK, &l)), EQ(l.l_type, F_WRLCK);
    close(other);
    int n;
    MUST(ioctl(fifo[0], FIONREAD, &n)), EQ(n, 11);
    /* What they are. Opening the lock files above has made more of them. */
    static char buf[65536] __attribute__((aligned(8)));
    CHECK(readable(ino, 0), "the queued events are lost");
    ssize_t got = MUST(read(ino, buf, sizeof buf));
    int made = 0;
    for (ssize_t at = 0; at < got;) {
        struct inotify_event *e = (void *)(buf + at);
        CHECK(!(e->mask & (IN_UNMOUNT | IN_IGNORED | IN_Q_OVERFLOW | IN_MOVE_SELF | IN_DELETE_SELF | IN_ATTRIB)), "an event %x on '%s'", e->mask, e->len ? e->name : "");
        if (e->wd == ino_wd) {
            CHECK(e->mask == (IN_CREATE | IN_ISDIR) && !strcmp(e->name, "made"), "an event %x on '%s'", e->mask, e->len ? e->name : "");
            made++;
        }
        at += sizeof *e + e->len;
    }
    EQ(made, 1);
    EQ(clients_n, 6);
    for (int i = 0; i < clients_n; i++) { /* the backlog, in order */
        char w[32];
        int c = MUST(accept(listener, NULL, NULL));
        snprintf(w, sizeof w, "client %d", i);
        want_data(c, w, strlen(w));
        close(c);
    }
    want_data(fifo[0], "in the fifo", 11);
    EQ(write(log_fd, "end\n", 4), 4);
    want_file("log", "begin\nend\n", 10);
    EQ(eventfd_write(ev, 1), 0);
    want_return(&b[1], 1);
    MUST(flock(flocked, LOCK_UN)), want_return(&b[2], 0);
    EQ(write(eintr_pipe[1], "x", 1), 1), want_return(&b[0], 1);
}
static void mutate(void) {
    char buf[4096];
    TRY(read(ino, buf, sizeof buf));
    TRY(read(fifo[0], buf, 5));
    EQ(write(log_fd, "junk\n", 5), 5);
    MUST(flock(flocked, LOCK_UN));
    for (int i = 0; i < FILES; i++) EQ(write(file[i], "x", 1), 1);
    fill(shared, PAGE, 9);
    close(clients[0]), close(ofd);
    unlink("sock"), unlink("fifo");
    EQ(eventfd_write(ev, 1), 0);
    EQ(write(eintr_pipe[1], "x", 1), 1);
}
