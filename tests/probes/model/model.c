/* The program of the state model test: makes random changes, from a seed, to everything a process can hold, and
 * says all it can observe of itself. The driver checkpoints and rolls back around it and compares what is said.
 *
 * Lines on standard input:
 *   s SEED N   N random steps
 *   d          the observation: lines, then a line with a single dot
 *   q          end
 *
 * Arguments name what to leave out (brk, sockets, shared, files, threads,
 * children, events), to narrow a failure down.
 *
 * The observation changes nothing: what can only be looked at by taking it out (pipes, queues, pending signals) is
 * put back as it was. It leaves out what depends on the moment (what is left of a timer) and says the rest exactly,
 * addresses, process ids and thread ids included.
 */
#define PROBE_NO_MAIN
#include "../probe.h"
#include <malloc.h>
#include <sys/timerfd.h>
#include <sys/xattr.h>


static char **left_out;
static int without(const char *what) {
    for (char **a = left_out; *a; a++)
        if (!strcmp(*a, what)) return 1;
    return 0;
}

static uint64_t rng;
static uint64_t rnd(uint64_t n) {
    rng += 0x9e3779b97f4a7c15ULL;
    return mix(rng) % n;
}
static uint64_t hash(const void *p, size_t n, uint64_t h) {
    const unsigned char *b = p;
    for (size_t i = 0; i < n; i++) h = (h ^ b[i]) * 0x100000001b3ULL;
    return h;
}
#define H0 0xcbf29ce484222325ULL

/* ---- the text of an observation: a static buffer, since the heap is observed too ------------------------- */

static char text[1 << 20];
static size_t text_n;
__attribute__((format(printf, 1, 2))) static void say(const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(text + text_n, sizeof text - text_n, fmt, ap);
    va_end(ap);
    if (n > 0 && text_n + n < sizeof text) text_n += n;
}

/* ---- memory ---------------------------------------------------------------------------------------------- */

#define REGIONS 24
static struct region {
    char *p;
    size_t n;
    int prot, kind; /* 0 private, 1 shared, 2 file shared, 3 file private, 4 memfd */
} region[REGIONS];
static uint64_t globals[4096];

static void memory_step(void) {
    struct region *r = &region[rnd(REGIONS)];
    if (!r->p) {
        r->n = (1 + rnd(60)) * PAGE;
        r->prot = PROT_READ | PROT_WRITE;
        r->kind = without("shared") ? rnd(2) * 3 : rnd(5);
        int fd = -1, flags = r->kind == 0 ? MAP_PRIVATE | MAP_ANONYMOUS : r->kind == 1 ? MAP_SHARED | MAP_ANONYMOUS : r->kind == 3 ? MAP_PRIVATE : MAP_SHARED;
        if (r->kind == 2 || r->kind == 3) {
            char name[32];
            snprintf(name, sizeof name, "mapped%d", (int)rnd(4));
            fd = open(name, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
        }
        if (r->kind == 4) fd = memfd_create("model", MFD_CLOEXEC);
        if (fd >= 0) {
            struct stat st;
            if (!fstat(fd, &st) && (size_t)st.st_size < r->n) TRY(ftruncate(fd, r->n));
        }
        r->p = mmap(NULL, r->n, r->prot, flags, fd, 0);
        if (fd >= 0) close(fd);
        if (r->p == MAP_FAILED) r->p = NULL;
        return;
    }
    switch (rnd(10)) {
    case 0:
        munmap(r->p, r->n);
        r->p = NULL;
        return;
    case 1:
        r->prot = (int[]){PROT_READ | PROT_WRITE, PROT_READ, PROT_NONE, PROT_READ | PROT_WRITE}[rnd(4)];
        mprotect(r->p, r->n, r->prot);
        return;
    case 2: {
        if (r->kind != 0) return;
        size_t n = (1 + rnd(60)) * PAGE;
        char *q = mremap(r->p, r->n, n, MREMAP_MAYMOVE);
        if (q != MAP_FAILED) r->p = q, r->n = n;
        return;
    }
    case 3:
        if (r->kind == 0) madvise(r->p + rnd(r->n / PAGE) * PAGE, PAGE, MADV_DONTNEED);
        return;
    case 4: globals[rnd(4096)] = rnd(~0ULL); return;
    case 5: {
        char *now = without("brk") ? (void *)-1 : sbrk((1 + rnd(8)) * PAGE);
        if (now != (void *)-1) fill(now, PAGE, rnd(1 << 30));
        return;
    }
    default:
        if (!(r->prot & PROT_WRITE)) return;
        for (int i = rnd(20); i >= 0; i--) ((uint64_t *)r->p)[rnd(r->n / 8)] = rnd(~0ULL);
    }
}
static void memory_say(void) {
    say("globals %lx\n", (long)hash(globals, sizeof globals, H0));
    for (int i = 0; i < REGIONS; i++) {
        struct region *r = &region[i];
        if (!r->p) continue;
        say("region %d %p %zu kind %d prot %d:", i, (void *)r->p, r->n, r->kind, r->prot);
        for (size_t at = 0; r->prot & PROT_READ && at < r->n; at += PAGE) say(" %04lx", (long)hash(r->p + at, PAGE, H0) & 0xffff);
        say("\n");
    }
    static char buf[1 << 17];
    int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    size_t n = 0;
    for (ssize_t k; (k = read(fd, buf + n, sizeof buf - 1 - n)) > 0;) n += k;
    close(fd);
    buf[n] = 0;
    /* Neighbours that could be one are said as one: whether the kernel merges them is history, not state. */
    unsigned long from = 0, to = 0, off = 0;
    char perm[8] = "", name[200] = "";
    for (char *line = strtok(buf, "\n"); line; line = strtok(NULL, "\n")) {
        char p[8], nm[200] = "";
        unsigned long f, t, o, ino;
        if (sscanf(line, "%lx-%lx %7s %lx %*s %lu %199[^\n]", &f, &t, p, &o, &ino, nm) < 5 || strstr(nm, "[stack]")) continue;
        if (f == to && !strcmp(p, perm) && !strcmp(nm, name) && (!ino || o == off + (to - from))) {
            to = t;
            continue;
        }
        if (to) say("map %lx-%lx %s %lx %s\n", from, to, perm, off, name);
        from = f, to = t, off = o;
        strcpy(perm, p), strcpy(name, nm);
    }
    say("map %lx-%lx %s %lx %s\n", from, to, perm, off, name);
}

/* ---- files ----------------------------------------------------------------------------------------------- */

#define FILES 24
static int file[FILES];
static void name_of(char *b, int i) { snprintf(b, 32, i % 4 == 3 ? "dir%d/file%d" : "file%d", i % 4 == 3 ? i % 3 : i, i); }
static void files_step(void) {
    char a[32], b[32], data[600];
    int i = rnd(FILES), j = rnd(FILES);
    name_of(a, rnd(FILES)), name_of(b, rnd(FILES));
    switch (rnd(20)) {
    case 0: TRY(rename(a, b)); break;
    case 1: TRY(unlink(a)); break;
    case 2: TRY(link(a, b)); break;
    case 3: TRY(symlink(a, b)); break;
    case 4: TRY(truncate(a, rnd(20000))); break;
    case 5: TRY(chmod(a, 0600 | rnd(0100))); break;
    case 6: snprintf(b, sizeof b, "dir%d", (int)rnd(3)), TRY(rnd(3) ? mkdir(b, 0755) : rmdir(b)); break;
    case 7: TRY(setxattr(a, "user.model", &i, sizeof i, 0)); break;
    case 8: case 9: case 10:
        if (file[i] < 0) {
            static const int flags[] = {O_RDWR, O_RDONLY, O_WRONLY | O_APPEND, O_RDWR | O_APPEND, O_RDWR | O_TRUNC, O_RDWR | O_NONBLOCK};
            file[i] = open(a, flags[rnd(6)] | O_CREAT | (rnd(2) ? O_CLOEXEC : 0), 0644);
        } else if (!rnd(2)) {
            close(file[i]);
            file[i] = -1;
        }
        break;
    case 11:
        if (file[i] >= 0 && file[j] < 0) file[j] = dup(file[i]);
        break;
    case 12:
        if (file[i] >= 0) TRY(lseek(file[i], rnd(10000), SEEK_SET));
        break;
    case 13:
        if (file[i] >= 0) TRY(fcntl(file[i], F_SETFL, rnd(2) ? O_NONBLOCK : 0));
        break;
    case 14:
        if (file[i] >= 0) TRY(flock(file[i], (int[]){LOCK_SH, LOCK_EX, LOCK_UN}[rnd(3)] | LOCK_NB));
        break;
    case 15:
        if (file[i] >= 0) {
            struct flock l = {.l_type = (short[]){F_RDLCK, F_WRLCK, F_UNLCK}[rnd(3)], .l_start = rnd(100), .l_len = 1 + rnd(50)};
            TRY(fcntl(file[i], F_OFD_SETLK, &l)); /* a plain one would go when the observation closes the file */
        }
        break;
    default:
        if (file[i] >= 0) {
            fill(data, sizeof data, rnd(1 << 30));
            TRY(write(file[i], data, 1 + rnd(sizeof data)));
        }
    }
}
static uint64_t hash_fd(int fd) {
    static char b[65536];
    uint64_t h = H0;
    off_t at = 0;
    for (ssize_t n; (n = pread(fd, b, sizeof b, at)) > 0; at += n) h = hash(b, n, h);
    return h;
}
static int by_name(const void *a, const void *b) { return strcmp(a, b); }
static void tree_say(const char *dir) {
    char names[80][64];
    int n = 0;
    int d = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    static char buf[16384];
    for (long k; (k = syscall(SYS_getdents64, d, buf, sizeof buf)) > 0;)
        for (long o = 0; o < k; o += *(unsigned short *)(buf + o + 16))
            if (buf[o + 19] != '.' && n < 80) snprintf(names[n++], 64, "%.63s", buf + o + 19);
    close(d);
    qsort(names, n, 64, by_name);
    for (int i = 0; i < n; i++) {
        char path[160], to[64] = "", x[16];
        struct stat st;
        snprintf(path, sizeof path, "%.60s/%.63s", dir, names[i]);
        if (lstat(path, &st)) continue;
        uint64_t h = 0;
        if (S_ISREG(st.st_mode)) {
            int fd = open(path, O_RDONLY | O_CLOEXEC);
            if (fd >= 0) h = hash_fd(fd), close(fd);
        }
        if (S_ISLNK(st.st_mode)) TRY(readlink(path, to, sizeof to - 1));
        say("file %s ino %lu mode %o nlink %lu size %ld mtime %ld.%09ld %s xattr %ld: %lx\n", path, st.st_ino, st.st_mode, S_ISDIR(st.st_mode) ? 0 : st.st_nlink,
            S_ISDIR(st.st_mode) ? 0 : (long)st.st_size, st.st_mtim.tv_sec, st.st_mtim.tv_nsec, to, (long)lgetxattr(path, "user.model", x, sizeof x), (long)h);
        if (S_ISDIR(st.st_mode) && !strcmp(dir, ".")) tree_say(path + 2);
    }
}
static void descriptors_say(void) {
    for (int fd = 3; fd < 512; fd++) {
        char path[64], to[200] = "", b[2048];
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        if (readlink(path, to, sizeof to - 1) < 0) continue;
        char *colon = strchr(to, ':'); /* pipe:[123]: the number is of this boot */
        if (colon && colon[1] == '[') colon[1] = 0;
        char *gone = strstr(to, " (deleted)"); /* made again, it has neither its old name nor its old number */
        if (gone && strncmp(to, "/memfd:", 7)) memmove(to, gone + 1, strlen(gone));
        struct stat st = {0};
        fstat(fd, &st);
        say("fd %d %s flags %o cloexec %d", fd, to, fcntl(fd, F_GETFL) & ~0100000 /* O_LARGEFILE says nothing here */, fcntl(fd, F_GETFD));
        if (S_ISREG(st.st_mode)) say(" at %ld size %ld nlink %lu ino %lu", (long)lseek(fd, 0, SEEK_CUR), (long)st.st_size, st.st_nlink, gone ? 0 : st.st_ino);
        if (S_ISREG(st.st_mode) && (fcntl(fd, F_GETFL) & O_ACCMODE) != O_WRONLY) say(" %lx", (long)hash_fd(fd));
        snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
        int info = open(path, O_RDONLY | O_CLOEXEC);
        ssize_t n = info >= 0 ? read(info, b, sizeof b - 1) : 0;
        if (info >= 0) close(info);
        b[n > 0 ? n : 0] = 0;
        char watches[64][64]; /* the kernel lists them by address */
        size_t watching = 0;
        for (char *line = strtok(b, "\n"); line; line = strtok(NULL, "\n")) {
            char kind[16], what[16], how[16], dev[32], from[24], end[24];
            int pid;
            if (sscanf(line, "lock: %*d: %15s %15s %15s %d %31s %23s %23s", kind, what, how, &pid, dev, from, end) == 7) say(" lock %s %s %d %s-%s", kind, how, pid, from, end);
            if (!strncmp(line, "eventfd-count", 13) || !strncmp(line, "clockid", 7) || !strncmp(line, "it_interval", 11)) say(" %s", line);
            unsigned tfd, ev;
            long long dt;
            if (sscanf(line, "tfd: %u events: %x data: %llx", &tfd, &ev, &dt) == 3 && watching < 64) snprintf(watches[watching++], 64, " watches %u %x %llx", tfd, ev, dt);
        }
        qsort(watches, watching, 64, (int (*)(const void *, const void *))strcmp);
        for (size_t i = 0; i < watching; i++) say("%s", watches[i]);
        say("\n");
    }
}

/* ---- pipes, sockets, events ------------------------------------------------------------------------------ */

#define PAIRS 16
static struct pair {
    int fd[2], kind; /* 0 none, 1 pipe, 2 stream, 3 datagram, 4 sequenced, 5 packet pipe, 6 tcp */
} pair[PAIRS];
#define EVENTS 8
static int event_fd[EVENTS], timer_fd[EVENTS], epoll_set;

static void tcp_pair(int *fd) {
    struct sockaddr_in at = {.sin_family = AF_INET};
    socklen_t n = sizeof at;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int l = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    fd[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), fd[1] = -1;
    if (!bind(l, (void *)&at, n) && !listen(l, 1) && !getsockname(l, (void *)&at, &n) && !connect(fd[0], (void *)&at, n)) fd[1] = accept4(l, NULL, NULL, SOCK_CLOEXEC);
    close(l);
}
static void pairs_step(void) {
    struct pair *p = &pair[rnd(PAIRS)];
    char data[700];
    if (!p->kind) {
        p->kind = without("sockets") ? 1 + rnd(2) * 4 : 1 + rnd(6);
        if (p->kind == 1) TRY(pipe2(p->fd, O_CLOEXEC));
        if (p->kind == 5) TRY(pipe2(p->fd, O_CLOEXEC | O_DIRECT));
        if (p->kind == 6) tcp_pair(p->fd);
        if (p->kind >= 2 && p->kind <= 4) TRY(socketpair(AF_UNIX, ((int[]){SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET})[p->kind - 2] | SOCK_CLOEXEC, 0, p->fd));
        return;
    }
    int sockets = p->kind != 1 && p->kind != 5, end = sockets ? rnd(2) : 0;
    switch (rnd(12)) {
    case 0:
        close(p->fd[0]), close(p->fd[1]);
        p->kind = 0;
        break;
    case 1: case 2: case 3: case 4:
        if (readable(p->fd[end], 0)) TRY(read(p->fd[end], data, 1 + rnd(sizeof data)));
        break;
    case 5: {
        int *e = &event_fd[rnd(EVENTS)];
        if (*e < 0) *e = eventfd(rnd(100), EFD_NONBLOCK | EFD_CLOEXEC | (rnd(2) ? EFD_SEMAPHORE : 0));
        else if (!rnd(6)) close(*e), *e = -1;
        else if (rnd(2)) TRY(eventfd_write(*e, rnd(1000)));
        break;
    }
    case 6: {
        int *t = &timer_fd[rnd(EVENTS)];
        struct itimerspec v = {{1000 + rnd(1000), rnd(1000)}, {10000 + rnd(1000), 0}};
        if (*t < 0) *t = timerfd_create(rnd(2) ? CLOCK_MONOTONIC : CLOCK_BOOTTIME, TFD_CLOEXEC);
        else if (!rnd(6)) close(*t), *t = -1;
        else TRY(timerfd_settime(*t, 0, &v, NULL));
        break;
    }
    case 7: {
        int what = rnd(2) ? event_fd[rnd(EVENTS)] : p->fd[0];
        struct epoll_event e = {.events = EPOLLIN | (rnd(2) ? EPOLLPRI : 0), .data.u64 = rnd(1 << 30)};
        if (what >= 0) TRY(epoll_ctl(epoll_set, rnd(3) ? EPOLL_CTL_ADD : EPOLL_CTL_DEL, what, &e));
        break;
    }
    default: {
        struct pollfd f = {p->fd[1 - end], POLLOUT, 0};
        fill(data, sizeof data, rnd(1 << 30));
        if (poll(&f, 1, 0) == 1 && f.revents == POLLOUT) {
            int n = 0;
            if (!ioctl(p->fd[end], FIONREAD, &n) && n < 8000) TRY(write(p->fd[1 - end], data, 1 + rnd(sizeof data)));
        }
    }
    }
}
/* What lies in one direction, taken out and put back. */
static void queue_say(int i, struct pair *p, int end) {
    static char b[1 << 16];
    static int len[256];
    int n = 0, messages = p->kind == 3 || p->kind == 4 || p->kind == 5;
    size_t at = 0;
    uint64_t h = H0;
    while (n < 256 && at < sizeof b - 1024 && readable(p->fd[end], p->kind == 6 ? 1 : 0)) {
        ssize_t k = read(p->fd[end], b + at, messages ? 1024 : sizeof b - at);
        if (k < 0) break;
        len[n++] = k, h = hash(b + at, k, h), at += k;
        if (!messages && k == 0) break;
        if (messages) h = hash(&k, sizeof k, h);
    }
    say("pair %d kind %d end %d: %d messages, %zu bytes, %lx\n", i, p->kind, end, messages ? n : 0, at, (long)h);
    size_t from = 0;
    if (messages)
        for (int k = 0; k < n; from += len[k++]) TRY(write(p->fd[1 - end], b + from, len[k]));
    else if (at) TRY(write(p->fd[1 - end], b, at));
    if (p->kind == 6 && at) WAIT_FOR(({ int q = 0; ioctl(p->fd[end], FIONREAD, &q); q == (int)at; }), 1000);
}
static void pairs_say(void) {
    for (int i = 0; i < PAIRS; i++) {
        if (!pair[i].kind) continue;
        queue_say(i, &pair[i], 0);
        if (pair[i].kind != 1 && pair[i].kind != 5) queue_say(i, &pair[i], 1);
    }
}

/* ---- signals, limits, small things ----------------------------------------------------------------------- */

static void nothing(int s) { (void)s; }
static void small_step(void) {
    struct rlimit l;
    char name[16];
    int s = SIGRTMIN + 2 + rnd(10);
    switch (rnd(12)) {
    case 0: case 1: TRY(sigqueue(getpid(), s, (union sigval){.sival_int = rnd(1 << 20)})); break;
    case 2: {
        sigset_t set;
        struct timespec zero = {0, 0};
        sigemptyset(&set), sigaddset(&set, s);
        TRY(sigtimedwait(&set, NULL, &zero));
        break;
    }
    case 3: signal((int[]){SIGHUP, SIGUSR1, SIGWINCH, SIGTTOU}[rnd(4)], (__sighandler_t[]){SIG_IGN, SIG_DFL, nothing}[rnd(3)]); break;
    case 4: umask(rnd(0100)); break;
    case 5: snprintf(name, sizeof name, "model %d", (int)rnd(1000)), prctl(PR_SET_NAME, name); break;
    case 6:
        getrlimit(RLIMIT_CORE, &l);
        l.rlim_cur = rnd(1000) > l.rlim_max ? 0 : rnd(1000);
        TRY(setrlimit(RLIMIT_CORE, &l));
        break;
    case 7: prctl(PR_SET_TIMERSLACK, 1000 + rnd(100000)); break;
    case 8: prctl(PR_SET_PDEATHSIG, rnd(2) ? SIGUSR2 : 0); break;
    case 9: {
        struct itimerval v = {{1000 + rnd(1000), 0}, {rnd(2) ? 50000 + rnd(1000) : 0, 0}};
        setitimer(ITIMER_REAL, &v, NULL);
        break;
    }
    case 10: {
        sigset_t set;
        sigemptyset(&set), sigaddset(&set, (int[]){SIGHUP, SIGUSR1, SIGUSR2, SIGTERM}[rnd(4)]);
        sigprocmask(rnd(2) ? SIG_BLOCK : SIG_UNBLOCK, &set, NULL);
        break;
    }
    case 11: prctl(PR_SET_DUMPABLE, 1); break;
    }
}
static void small_say(void) {
    struct rlimit l;
    struct itimerval t;
    char name[16];
    int dead;
    mode_t m = umask(0);
    umask(m);
    prctl(PR_GET_NAME, name), prctl(PR_GET_PDEATHSIG, &dead), getrlimit(RLIMIT_CORE, &l), getitimer(ITIMER_REAL, &t);
    say("ids %d %d %d %d umask %o name %s slack %d deathsig %d core %ld timer %ld %d\n", getpid(), getppid(), getpgrp(), getsid(0), m, name, prctl(PR_GET_TIMERSLACK), dead, (long)l.rlim_cur,
        t.it_interval.tv_sec, t.it_value.tv_sec != 0);
    uint64_t mask;
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, NULL, &mask, 8);
    say("mask %lx\n", (long)mask);
    for (int s = 1; s <= 64; s++) {
        struct {
            unsigned long h, f, r, m;
        } a;
        if (!syscall(SYS_rt_sigaction, s, NULL, &a, 8) && a.h) say("action %d %lx %lx %lx\n", s, a.h, a.f, a.m);
    }
    static siginfo_t q[2000];
    struct timespec zero = {0, 0};
    sigset_t set;
    int n = 0;
    sigemptyset(&set);
    for (int s = SIGRTMIN + 2; s < SIGRTMIN + 12; s++) sigaddset(&set, s);
    while (n < 2000 && sigtimedwait(&set, &q[n], &zero) > 0) n++;
    for (int i = 0; i < n; i++) {
        say("pending %d %d from %d\n", q[i].si_signo, q[i].si_value.sival_int, q[i].si_pid);
        TRY(syscall(SYS_rt_sigqueueinfo, getpid(), q[i].si_signo, &q[i]));
    }
}

/* ---- threads --------------------------------------------------------------------------------------------- */

#define THREADS 8
static agent thread[THREADS];
static int alive[THREADS];
static _Thread_local uint64_t own[256];
static long thread_work(int cmd) {
    if (cmd == 'x') pthread_exit(NULL);
    if (cmd == 'h') return hash(own, sizeof own, H0) & 0x7fffffffffff;
    if (cmd == 'n') {
        char n[16];
        prctl(PR_GET_NAME, n);
        return hash(n, strlen(n), H0) & 0x7fffffff;
    }
    own[(cmd * 7) % 256] += cmd;
    if (cmd % 5 == 0) prctl(PR_SET_NAME, (char[]){'t', cmd, 0});
    return 0;
}
static void threads_step(void) {
    int i = rnd(THREADS);
    if (!alive[i]) {
        agent_thread(&thread[i], thread_work);
        alive[i] = 1;
    } else if (!rnd(6)) {
        tell(&thread[i], 'x');
        pthread_join(thread[i].thread, NULL);
        close(thread[i].tx), close(thread[i].rx), close(thread[i].in), close(thread[i].out);
        alive[i] = 0;
    } else {
        ask(&thread[i], 'A' + rnd(26));
    }
}
static void threads_say(void) {
    for (int i = 0; i < THREADS; i++)
        if (alive[i]) say("thread %d tid %d: %lx %lx\n", i, thread[i].pid, ask(&thread[i], 'h'), ask(&thread[i], 'n'));
}

/* ---- children -------------------------------------------------------------------------------------------- */

#define CHILDREN 6
static struct child {
    pid_t pid;
    int state; /* 0 none, 1 ours, 2 another program, 3 zombie */
    int to, from;
} child[CHILDREN];
static int depth;
static void obey(FILE *in, int out);

static void children_step(void) {
    int i = rnd(CHILDREN);
    struct child *c = &child[i];
    if (depth) return;
    if (c->state == 0) {
        int a[2], b[2];
        if (pipe2(a, O_CLOEXEC) || pipe2(b, O_CLOEXEC)) return;
        int kind = 1 + rnd(3);
        pid_t p = fork();
        if (!p) {
            depth = 1;
            close(a[1]), close(b[0]);
            for (int k = 0; k < CHILDREN; k++)
                if (child[k].state) close(child[k].to), close(child[k].from);
            if (kind == 3) _exit(i + 10);
            if (kind == 2) execl("/bin/sleep", "sleep", "1000000", NULL), _exit(99);
            memset(alive, 0, sizeof alive); /* threads do not come along */
            FILE *in = fdopen(a[0], "r");
            if (rnd(2)) setpgid(0, 0);
            obey(in, b[1]);
            _exit(0);
        }
        close(a[0]), close(b[1]);
        *c = (struct child){p, kind, a[1], b[0]};
        if (kind == 3) wait_state(p, 'Z');
        if (kind == 2) WAIT_FOR(({ char l[64], t[64] = ""; snprintf(l, 64, "/proc/%d/comm", p); int f = open(l, O_RDONLY | O_CLOEXEC); if (read(f, t, 63) < 0) t[0] = 0; close(f); !strcmp(t, "sleep\n"); }), 2000);
        return;
    }
    if (c->state == 1 && rnd(5)) {
        char line[64], got[4];
        int n = snprintf(line, sizeof line, "s %lu 5\n", (unsigned long)rnd(~0ULL));
        if (write(c->to, line, n) == n) TRY(read(c->from, got, 3));
        return;
    }
    if (!rnd(3)) {
        int st;
        kill(c->pid, SIGKILL);
        waitpid(c->pid, &st, 0);
        close(c->to), close(c->from);
        c->state = 0;
    }
}
static void children_say(void) {
    for (int i = 0; i < CHILDREN; i++) {
        struct child *c = &child[i];
        if (!c->state) continue;
        if (c->state == 2) WAIT_FOR(task_state(c->pid) == 'S', 1000);
        char st = task_state(c->pid);
        say("child %d pid %d kind %d state %c parent %lld group %lld session %lld\n", i, c->pid, c->state, c->state == 1 ? '-' : st, stat_field(c->pid, 4), stat_field(c->pid, 5), stat_field(c->pid, 6));
        if (c->state != 1) continue;
        if (write(c->to, "d\n", 2) != 2) {
            say("  cannot be asked\n");
            continue;
        }
        size_t from = text_n;
        for (;;) {
            if (!readable(c->from, 5000)) {
                say("  does not answer\n");
                break;
            }
            ssize_t n = read(c->from, text + text_n, sizeof text - text_n - 1);
            if (n <= 0) {
                say("  is gone\n");
                break;
            }
            text_n += n;
            if (text_n - from >= 3 && !memcmp(text + text_n - 3, "\n.\n", 3)) {
                text_n -= 2;
                break;
            }
        }
    }
}

/* ---- obeying --------------------------------------------------------------------------------------------- */

static void observe(void) {
    text_n = 0;
    small_say(), memory_say(), descriptors_say(), pairs_say();
    if (!depth) tree_say("."), threads_say(), children_say();
}
static void step(void) {
    static void (*const steps[])(void) = {memory_step, memory_step, memory_step, files_step, files_step, files_step, pairs_step, pairs_step, small_step, threads_step, children_step};
    uint64_t k = rnd(11);
    if (depth && k >= 9) k = 0;
    static const char *const names[] = {"memory", "memory", "memory", "files", "files", "files", "events", "events", "small", "threads", "children"};
    if (without(names[k])) k = 0;
    steps[k]();
}
static void put(int fd, const char *t, size_t n) {
    while (n) {
        ssize_t w = write(fd, t, n);
        if (w <= 0) _exit(3);
        t += w, n -= w;
    }
}
static void obey(FILE *in, int out) {
    static char line[128];
    setvbuf(in, NULL, _IONBF, 0);
    while (fgets(line, sizeof line, in)) {
        unsigned long seed;
        int n;
        if (sscanf(line, "s %lu %d", &seed, &n) == 2) {
            rng = seed;
            for (int i = 0; i < n; i++) step();
            put(out, "ok\n", 3);
        } else if (line[0] == 'd') {
            observe();
            say(".\n");
            put(out, text, text_n);
        } else if (line[0] == 'q') {
            return;
        }
    }
}

int main(int argc, char **argv) {
    left_out = argv + (argc > 0);
    sigset_t set;
    signal(SIGPIPE, SIG_IGN);
    sigemptyset(&set);
    for (int s = SIGRTMIN + 2; s < SIGRTMIN + 12; s++) sigaddset(&set, s);
    sigprocmask(SIG_BLOCK, &set, NULL);
    for (int i = 0; i < FILES; i++) file[i] = -1;
    for (int i = 0; i < EVENTS; i++) event_fd[i] = timer_fd[i] = -1;
    epoll_set = epoll_create1(EPOLL_CLOEXEC);
    mallopt(M_ARENA_MAX, 1); /* the addresses of arenas depend on which thread asked first */
    put(1, "READY\n", 6);
    obey(stdin, 1);
    for (int i = 0; i < CHILDREN; i++)
        if (child[i].state) kill(child[i].pid, SIGKILL);
    return 0;
}
