/* What all probe programs share: the command loop, checks that report instead of aborting, helpers for
 * several processes and threads, and waiting for a task to be really blocked.
 *
 * A probe defines setup(), check() and mutate(), sets up in setup() exactly what it is about, and then obeys
 * single letters:
 *
 *   c  is everything exactly as set up?  answers "PASS" or "FAIL: why"
 *   m  change everything there is to change ("OK"), or say why nothing can be ("NOOP: why")
 *   q  end
 *
 * The letters come from standard input, which for a command run in a sandbox lies outside of its state: a letter
 * that was read is not given back by a rollback. With `--dir D` they come from the file D/cmd instead and the
 * answers go to D/out, so that a probe whose every process was killed can be talked to after it was re-created.
 * With `--run LETTERS` the probe runs them at once and ends.
 *
 * Exit status: 0 all checks passed, 1 a check failed (the state is wrong), 2 the probe itself could not work.
 * check() may use up what it checks; it is called again only after a rollback.
 */
#ifndef PROBE_H
#define PROBE_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define UNUSED __attribute__((unused))
#define PAGE 4096UL

#ifndef PROBE_NO_MAIN /* for programs with a main of their own that want the helpers */
static void setup(void);
static void check(void);
static void mutate(void);
#endif

/* ---- failing ------------------------------------------------------------------------------------------- */

static _Thread_local jmp_buf *probe_catch; /* where fail() goes; NULL while setting up: the probe is broken */
static _Thread_local char probe_why[400];
static char probe_noop_why[200] UNUSED;
static char **probe_argv UNUSED;
static const char *probe_dir; /* of --dir */

UNUSED static void probe_say(const char *text) {
    size_t n = strlen(text);
    if (!probe_dir) {
        while (n) {
            ssize_t w = write(1, text, n);
            if (w <= 0) _exit(2);
            text += w, n -= w;
        }
        return;
    }
    char tmp[PATH_MAX], out[PATH_MAX];
    snprintf(tmp, sizeof tmp, "%s/out.new", probe_dir);
    snprintf(out, sizeof out, "%s/out", probe_dir);
    int fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0 || write(fd, text, n) != (ssize_t)n || close(fd) || rename(tmp, out)) _exit(2);
}

__attribute__((noreturn, format(printf, 1, 2))) UNUSED static void fail(const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(probe_why, sizeof probe_why, fmt, ap);
    va_end(ap);
    if (probe_catch) longjmp(*probe_catch, 1);
    char text[500];
    snprintf(text, sizeof text, "BROKEN: %s\n", probe_why);
    probe_say(text);
    _exit(2);
}

/* The machine or the sandbox does not offer what the probe is about: said aloud, and told from success. */
__attribute__((noreturn)) UNUSED static void skip(const char *why) {
    char text[300];
    snprintf(text, sizeof text, "SKIP: %s\n", why);
    probe_say(text);
    _exit(77);
}

/* For mutate(): nothing can be changed here, and why. */
UNUSED static void noop(const char *why) { snprintf(probe_noop_why, sizeof probe_noop_why, "%s", why); }

#define CHECK(cond, ...)                                                                                         \
    ({                                                                                                           \
        if (!(cond)) fail(__VA_ARGS__);                                                                          \
    })
#define EQ(got, want)                                                                                            \
    ({                                                                                                           \
        long long eq_g = (long long)(got), eq_w = (long long)(want);                                             \
        if (eq_g != eq_w) fail("line %d: %s is %lld, not %lld", __LINE__, #got, eq_g, eq_w);                     \
    })
#define MUST(call)                                                                                               \
    ({                                                                                                           \
        __typeof__(call) must_r = (call);                                                                        \
        if ((long)must_r == -1) fail("line %d: %s: %s", __LINE__, #call, strerror(errno));                       \
        must_r;                                                                                                  \
    })
/* pthread_* calls, which return the error */
#define ZERO(call)                                                                                               \
    ({                                                                                                           \
        int zero_r = (call);                                                                                     \
        if (zero_r) fail("line %d: %s: %s", __LINE__, #call, strerror(zero_r));                                  \
    })
/* For mutate(), which may run on a state that check() has used up. */
#define TRY(call)                                                                                                \
    ({                                                                                                           \
        if ((long)(call) == -1) {                                                                                \
        }                                                                                                        \
    })

/* ---- time and waiting ---------------------------------------------------------------------------------- */

UNUSED static int64_t now_ns(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}
UNUSED static int64_t now_ms(void) { return now_ns(CLOCK_MONOTONIC) / 1000000; }
UNUSED static void sleep_ms(int ms) {
    int64_t end = now_ns(CLOCK_MONOTONIC) + ms * 1000000LL;
    struct timespec t = {end / 1000000000LL, end % 1000000000LL};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR) {
    }
}
/* Waits until cond holds, at most ms; false when it never did. */
#define WAIT_FOR(cond, ms)                                                                                       \
    ({                                                                                                           \
        int64_t wf_end = now_ms() + (ms);                                                                        \
        int wf_ok;                                                                                               \
        while (!(wf_ok = !!(cond)) && now_ms() < wf_end) sleep_ms(2);                                            \
        wf_ok;                                                                                                   \
    })

/* State letter of a task (R, S, T, Z, ...), 0 when there is none. */
UNUSED static char task_state(pid_t tid) {
    char path[64], buf[512];
    snprintf(path, sizeof path, "/proc/%d/stat", tid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 0;
    ssize_t n = read(fd, buf, sizeof buf - 1);
    close(fd);
    if (n <= 0) return 0;
    buf[n] = 0;
    char *p = strrchr(buf, ')');
    return p ? p[2] : 0;
}
UNUSED static void wait_state(pid_t tid, char state) {
    if (!WAIT_FOR(task_state(tid) == state, 5000)) fail("task %d is in state %c, not %c", tid, task_state(tid), state);
}
/* Field number `n` of /proc/PID/stat, counted as in proc(5): 4 is the parent. */
UNUSED static long long stat_field(pid_t pid, int n) {
    char path[64], buf[1024];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    int fd = MUST(open(path, O_RDONLY | O_CLOEXEC));
    ssize_t len = read(fd, buf, sizeof buf - 1);
    close(fd);
    CHECK(len > 0, "cannot read %s", path);
    buf[len] = 0;
    char *p = strrchr(buf, ')');
    CHECK(p, "cannot parse %s", path);
    for (int i = 2; p && i < n; i++) p = strchr(p + 1, ' ');
    CHECK(p, "no field %d in %s", n, path);
    return atoll(p + 1);
}
/* The text after "KEY:" in /proc/PID/status, without leading blanks. */
UNUSED static const char *status_line(pid_t pid, const char *key) {
    static _Thread_local char line[512];
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/status", pid);
    FILE *f = fopen(path, "re");
    CHECK(f, "cannot open %s: %s", path, strerror(errno));
    size_t k = strlen(key);
    const char *found = NULL;
    while (!found && fgets(line, sizeof line, f))
        if (!strncmp(line, key, k) && line[k] == ':') found = line + k + 1;
    fclose(f);
    CHECK(found, "no %s in %s", key, path);
    while (*found == ' ' || *found == '\t') found++;
    line[strcspn(line, "\n")] = 0;
    return found;
}
/* Nothing may arrive on fd within ms. */
UNUSED static int readable(int fd, int ms) {
    struct pollfd p = {.fd = fd, .events = POLLIN};
    int r;
    while ((r = poll(&p, 1, ms)) < 0 && errno == EINTR) {
    }
    return r == 1 && (p.revents & (POLLIN | POLLHUP));
}
/* Reads exactly what is wanted, or fails: never blocks for more than two seconds. */
UNUSED static void want_data(int fd, const void *want, size_t n) {
    char buf[n];
    size_t got = 0;
    while (got < n) {
        CHECK(readable(fd, 2000), "only %zu of %zu bytes are there", got, n);
        ssize_t r = MUST(read(fd, buf + got, n - got));
        CHECK(r > 0, "end of data after %zu of %zu bytes", got, n);
        got += r;
    }
    CHECK(!memcmp(buf, want, n), "the data is not what was put there");
}

/* ---- patterns ------------------------------------------------------------------------------------------ */

UNUSED static uint64_t mix(uint64_t x) {
    x ^= x >> 30, x *= 0xbf58476d1ce4e5b9ULL;
    x ^= x >> 27, x *= 0x94d049bb133111ebULL;
    return x ^ (x >> 31);
}
UNUSED static void fill(void *at, size_t bytes, uint64_t seed) {
    uint64_t *p = at;
    for (size_t i = 0; i < bytes / 8; i++) p[i] = mix(seed + i);
}
UNUSED static void want_fill(const char *what, const void *at, size_t bytes, uint64_t seed) {
    const uint64_t *p = at;
    for (size_t i = 0; i < bytes / 8; i++)
        if (p[i] != mix(seed + i)) fail("%s: differs at byte %zu", what, i * 8);
}
UNUSED static void want_zero(const char *what, const void *at, size_t bytes) {
    const uint64_t *p = at;
    for (size_t i = 0; i < bytes / 8; i++)
        if (p[i]) fail("%s: not zero at byte %zu", what, i * 8);
}
UNUSED static void *map_anon(size_t bytes) {
    return MUST(mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
}
UNUSED static void *map_shared(size_t bytes) {
    return MUST(mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
}
UNUSED static void write_file(const char *path, const void *data, size_t n) {
    int fd = MUST(open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
    EQ(write(fd, data, n), n);
    MUST(close(fd));
}
UNUSED static void want_file(const char *path, const void *data, size_t n) {
    int fd = MUST(open(path, O_RDONLY | O_CLOEXEC));
    struct stat st;
    MUST(fstat(fd, &st));
    CHECK((size_t)st.st_size == n, "%s has %lld bytes, not %zu", path, (long long)st.st_size, n);
    want_data(fd, data, n);
    MUST(close(fd));
}

/* ---- helpers in other processes and threads ------------------------------------------------------------ */

/* An agent waits for a letter, runs its function on it, and answers with the number returned or the failure. */
typedef long (*agent_fn)(int cmd);
typedef struct {
    pid_t pid; /* of a process, or the thread id */
    int tx, rx;
    int in, out;
    agent_fn fn;
    pthread_t thread;
} agent;

/* Processes to be ended with the probe. */
static pid_t probe_children[256];
static int probe_children_n;

static void agent_loop(int in, int out, agent_fn fn) {
    for (;;) {
        char c, text[500];
        ssize_t n = read(in, &c, 1);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return;
        jmp_buf catch;
        probe_catch = &catch;
        if (!setjmp(catch)) {
            long v = fn(c);
            snprintf(text, sizeof text, "=%ld\n", v);
        } else {
            snprintf(text, sizeof text, "!%s\n", probe_why);
        }
        probe_catch = NULL;
        if (write(out, text, strlen(text)) < 0) return;
    }
}
UNUSED static pid_t owned_child(pid_t pid) {
    if (pid > 0 && probe_children_n < 256) probe_children[probe_children_n++] = pid;
    return pid;
}
/* fork() whose child ends with the probe. */
UNUSED static pid_t fork_child(void) { return owned_child(MUST(fork())); }
/* Forks; the child becomes an agent and never returns from here. */
UNUSED static agent agent_fork(agent_fn fn) {
    int a[2], b[2];
    MUST(pipe2(a, O_CLOEXEC));
    MUST(pipe2(b, O_CLOEXEC));
    pid_t pid = MUST(fork());
    if (!pid) {
        close(a[1]), close(b[0]);
        agent_loop(a[0], b[1], fn);
        _exit(0);
    }
    close(a[0]), close(b[1]);
    owned_child(pid);
    return (agent){.pid = pid, .tx = a[1], .rx = b[0]};
}
static void *agent_thread_main(void *p) {
    agent *a = p;
    __atomic_store_n(&a->pid, (pid_t)syscall(SYS_gettid), __ATOMIC_SEQ_CST);
    agent_loop(a->in, a->out, a->fn);
    return NULL;
}
/* Starts a thread that is an agent; `a` must stay where it is. */
UNUSED static void agent_thread(agent *a, agent_fn fn) {
    int x[2], y[2];
    MUST(pipe2(x, O_CLOEXEC));
    MUST(pipe2(y, O_CLOEXEC));
    *a = (agent){.tx = x[1], .rx = y[0], .in = x[0], .out = y[1], .fn = fn};
    ZERO(pthread_create(&a->thread, NULL, agent_thread_main, a));
    while (!__atomic_load_n(&a->pid, __ATOMIC_SEQ_CST)) sleep_ms(1);
}
/* Sends without waiting for the answer. */
UNUSED static void tell(agent *a, int cmd) {
    char c = cmd;
    EQ(write(a->tx, &c, 1), 1);
}
UNUSED static long answer(agent *a) {
    char text[500];
    size_t n = 0;
    do {
        CHECK(readable(a->rx, 5000), "helper %d does not answer", a->pid);
        ssize_t r = read(a->rx, text + n, 1);
        CHECK(r == 1, "helper %d is gone", a->pid);
    } while (text[n++] != '\n' && n < sizeof text);
    text[n - 1] = 0;
    CHECK(text[0] == '=', "helper %d: %s", a->pid, text + 1);
    return atol(text + 1);
}
UNUSED static long ask(agent *a, int cmd) {
    tell(a, cmd);
    return answer(a);
}
/* Forks a child that only waits; returns its pid. */
UNUSED static pid_t fork_idle(void) {
    pid_t pid = fork_child();
    if (!pid)
        for (;;) pause();
    return pid;
}

/* A call that blocks, on a thread of its own. */
typedef struct {
    long (*fn)(void);
    pthread_t thread;
    pid_t tid;
    int done;
    long ret;
    int err;
} blocked;
static void *blocked_main(void *p) {
    blocked *b = p;
    __atomic_store_n(&b->tid, (pid_t)syscall(SYS_gettid), __ATOMIC_SEQ_CST);
    errno = 0;
    b->ret = b->fn();
    b->err = errno;
    __atomic_store_n(&b->done, 1, __ATOMIC_SEQ_CST);
    return NULL;
}
/* Returns when the call is really blocked; `b` must stay where it is. */
UNUSED static void block_in(blocked *b, long (*fn)(void)) {
    memset(b, 0, sizeof *b);
    b->fn = fn;
    ZERO(pthread_create(&b->thread, NULL, blocked_main, b));
    while (!__atomic_load_n(&b->tid, __ATOMIC_SEQ_CST)) sleep_ms(1);
    sleep_ms(5);
    wait_state(b->tid, 'S');
    CHECK(!b->done, "the call did not block: %ld, %s", b->ret, strerror(b->err));
}
/* The call must still be blocked, though perhaps interrupted and continued. */
UNUSED static void want_blocked(blocked *b) {
    sleep_ms(20);
    CHECK(!__atomic_load_n(&b->done, __ATOMIC_SEQ_CST), "the call came back by itself: %ld, %s", b->ret, strerror(b->err));
    char s = task_state(b->tid);
    CHECK(s == 'S', "the blocked thread is in state %c", s ? s : '-');
}
UNUSED static void want_return(blocked *b, long ret) {
    CHECK(WAIT_FOR(__atomic_load_n(&b->done, __ATOMIC_SEQ_CST), 3000), "the call was not released");
    CHECK(b->ret == ret, "the call returned %ld (%s), not %ld", b->ret, b->err ? strerror(b->err) : "no error", ret);
}

#ifndef PROBE_NO_MAIN
/* ---- running ------------------------------------------------------------------------------------------- */

static int probe_failed;
static int probe_eintr_ok; /* for probes whose main thread takes signals */

/* True when the probe is to go on. */
static int probe_obey(char cmd) {
    jmp_buf catch;
    char text[500];
    switch (cmd) {
    case 'c':
        probe_catch = &catch;
        if (!setjmp(catch)) {
            check();
            snprintf(text, sizeof text, "PASS\n");
        } else {
            probe_failed = 1;
            snprintf(text, sizeof text, "FAIL: %s\n", probe_why);
        }
        break;
    case 'm':
        probe_catch = &catch;
        probe_noop_why[0] = 0;
        if (setjmp(catch))
            snprintf(text, sizeof text, "PARTIAL: %s\n", probe_why);
        else {
            mutate();
            if (probe_noop_why[0])
                snprintf(text, sizeof text, "NOOP: %s\n", probe_noop_why);
            else
                snprintf(text, sizeof text, "OK\n");
        }
        break;
    case 'q': return 0;
    default: return 1;
    }
    probe_catch = NULL;
    probe_say(text);
    return 1;
}

/* The next letter, or 'q' at the end of input. */
static char probe_next(void) {
    char c = 'q';
    if (!probe_dir) {
        ssize_t n;
        while ((n = read(0, &c, 1)) < 0 && errno == EINTR && probe_eintr_ok) {
        }
        if (n < 0) {
            char text[200];
            snprintf(text, sizeof text, "BROKEN: waiting for a command: %s\n", strerror(errno));
            probe_say(text);
            _exit(2);
        }
        return n == 1 ? c : 'q';
    }
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/cmd", probe_dir);
    for (;;) {
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd >= 0) {
            ssize_t n = read(fd, &c, 1);
            close(fd);
            if (n == 1) {
                unlink(path);
                return c;
            }
        }
        sleep_ms(5);
    }
}

int main(int argc, char **argv) {
    probe_argv = argv;
    const char *run = NULL;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--dir")) probe_dir = realpath(argv[i + 1], NULL);
        if (!strcmp(argv[i], "--run")) run = argv[i + 1];
    }
    signal(SIGPIPE, SIG_IGN); /* a helper that is gone is a failure, not the end */
    setup();
    if (run) {
        while (*run && probe_obey(*run)) run++;
    } else {
        probe_say("READY\n");
        while (probe_obey(probe_next())) {
        }
    }
    for (int i = 0; i < probe_children_n; i++) kill(probe_children[i], SIGKILL);
    _exit(probe_failed);
}
#endif /* PROBE_NO_MAIN */

#endif
