//! Pipes, FIFOs, counters, timers, signals, watches, memory files, locks.

mod descriptor_common;
use descriptor_common::Target;

#[test]
fn pipes_keep_content_capacity_and_ends() {
    Target::start(
        r#"
r, w = os.pipe()
fcntl.fcntl(w, 1031, 16384)
os.write(w, b"x" * 5000)
lonely_r, lonely_w = os.pipe()
os.write(lonely_w, b"last words")
os.close(lonely_w)
broken_r, broken_w = os.pipe()
os.close(broken_r)
pr, pw = os.pipe2(os.O_DIRECT)
os.write(pw, b"one")
both = os.open(f"/proc/self/fd/{r}", os.O_RDWR | os.O_NONBLOCK)
def table():
    return sorted(int(n) for n in os.listdir("/proc/self/fd"))[:-1]
def change():
    os.read(r, 4000)
    os.write(w, b"later")
    os.read(lonely_r, 100)
    os.close(r); os.close(w); os.close(both)
    os.read(pr, 100)
    os.write(pw, b"other"); os.write(pw, b"still another")
    os.close(broken_w)
def check():
    assert fcntl.fcntl(r, 1032) == 16384
    assert os.read(both, 100000) == b"x" * 5000
    os.write(w, b"x" * 5000)
    assert os.read(lonely_r, 100) == b"last words" and os.read(lonely_r, 100) == b""
    again = os.open(f"/proc/self/fd/{lonely_r}", os.O_WRONLY)
    os.write(again, b"last words")
    os.close(again)
    try:
        os.write(broken_w, b"x")
        raise AssertionError("somebody reads")
    except BrokenPipeError:
        pass
    assert os.read(pr, 100) == b"one"
    os.write(pw, b"one")
steps(change, check)
"#,
    )
    .round_trip_changing_inodes();
}

#[test]
fn a_pipe_between_processes_stays_one() {
    Target::start(
        r#"
r, w = os.pipe()
ar, aw = os.pipe()
os.write(w, b"queued")
child = os.fork()
if child == 0:
    os.close(w)
    os.close(ar)
    while True:
        word = os.read(r, 6)
        if word == b"":
            os._exit(0)
        if word == b"closer":
            word = b"k"
        os.write(aw, word)
assert os.read(ar, 6) == b"queued"
os.write(w, b"second")
assert os.read(ar, 6) == b"second"
spare = os.dup(w)
def change():
    os.write(w, b"closer")
    assert os.read(ar, 1) == b"k"
    os.close(w)
def check():
    os.write(w, b"hello!")
    assert os.read(ar, 6) == b"hello!"
steps(change, check)
"#,
    )
    .round_trip();
}

#[test]
fn fifos_keep_content() {
    Target::start(
        r#"
os.mkfifo("@DIR@/fifo")
both = os.open("@DIR@/fifo", os.O_RDWR)
r = os.open("@DIR@/fifo", os.O_RDONLY)
w = os.open("@DIR@/fifo", os.O_WRONLY | os.O_NONBLOCK)
os.write(w, b"through a name")
def change():
    os.read(r, 7)
    os.close(both); os.close(r); os.close(w)
def check():
    assert os.read(r, 100) == b"through a name"
    assert fcntl.fcntl(w, fcntl.F_GETFL) & os.O_NONBLOCK
    assert not fcntl.fcntl(r, fcntl.F_GETFL) & os.O_NONBLOCK
    os.write(both, b"through a name")
steps(change, check)
"#,
    )
    .round_trip();
}

#[test]
fn counters_come_back() {
    Target::start(
        r#"
plain = os.eventfd(7)
big = os.eventfd(0)
os.eventfd_write(big, 2**60)
semaphore = os.eventfd(3, os.EFD_SEMAPHORE | os.EFD_NONBLOCK)
def change():
    os.eventfd_read(plain)
    os.eventfd_write(big, 5)
    os.eventfd_write(semaphore, 10)
    os.close(plain)
def check():
    assert os.eventfd_read(plain) == 7
    os.eventfd_write(plain, 7)
    assert os.eventfd_read(big) == 2**60
    os.eventfd_write(big, 2**60)
    assert [os.eventfd_read(semaphore) for _ in range(3)] == [1, 1, 1]
    try:
        os.eventfd_read(semaphore)
        raise AssertionError("more than three")
    except BlockingIOError:
        pass
    os.eventfd_write(semaphore, 3)
steps(change, check)
"#,
    )
    .round_trip();
}

const TIMERS: &str = r#"
class Spec(ctypes.Structure):
    _fields_ = [("interval", ctypes.c_long * 2), ("value", ctypes.c_long * 2)]
def timer(clock, value, interval=0, flags=0):
    fd = libc.timerfd_create(clock, os.O_NONBLOCK)
    seconds, rest = int(value), int((value % 1) * 1e9)
    spec = Spec((int(interval), int((interval % 1) * 1e9)), (seconds, rest))
    assert libc.timerfd_settime(fd, flags, ctypes.byref(spec), None) == 0
    return fd
def left(fd):
    spec = Spec()
    libc.timerfd_gettime(fd, ctypes.byref(spec))
    return spec.value[0] + spec.value[1] / 1e9, spec.interval[0] + spec.interval[1] / 1e9
"#;

#[test]
fn timers_go_on_with_the_time_that_was_left() {
    let program = format!(
        "{TIMERS}{}",
        r#"
relative = timer(1, 1000, 5)
absolute = timer(0, time.time() + 500, 0, 1)
idle = timer(7, 0)
expired = timer(1, 0.001)
time.sleep(0.02)
def change():
    libc.timerfd_settime(relative, 0, ctypes.byref(Spec()), None)
    os.close(absolute)
    os.read(expired, 8)
    libc.timerfd_settime(idle, 0, ctypes.byref(Spec((0, 0), (9, 9))), None)
def check():
    value, interval = left(relative)
    assert 990 < value <= 1000 and interval == 5
    value, interval = left(absolute)
    assert 490 < value <= 500 and interval == 0
    assert left(idle) == (0, 0)
    assert "ticks: 1" in fdinfo(expired)
    assert "clockid: 7" in fdinfo(idle) and "settime flags: 01" in fdinfo(absolute)
steps(change, check)
"#
    );
    let mut target = Target::start(&program);
    target.expect("ready");
    let tables = target.capture();
    for _ in 0..2 {
        target.ask("change", "changed");
        target.restore(&tables);
        target.ask("check", "PASS");
    }
}

#[test]
fn signal_descriptors_and_process_descriptors_come_back() {
    Target::start(
        r#"
mask = (ctypes.c_ulong * 16)(1 << (signal.SIGUSR1 - 1))
s = libc.signalfd(-1, mask, 0)
child = os.fork()
if child == 0:
    signal.pause()
p = os.pidfd_open(child)
dead = os.fork()
if dead == 0:
    os._exit(0)
d = os.pidfd_open(dead)
os.waitpid(dead, 0)
me = os.pidfd_open(os.getpid())
def change():
    libc.signalfd(s, (ctypes.c_ulong * 16)(1 << (signal.SIGUSR2 - 1)), 0)
    os.close(p); os.close(d); os.close(me)
def check():
    assert f"sigmask:\t{1 << (signal.SIGUSR1 - 1):016x}" in fdinfo(s), fdinfo(s)
    assert f"Pid:\t{child}" in fdinfo(p)
    assert "Pid:\t-1" in fdinfo(d)
    assert select.select([d], [], [], 0)[0] == [d] and select.select([p], [], [], 0)[0] == []
    signal.pidfd_send_signal(p, 0)
steps(change, check)
"#,
    )
    .round_trip_changing_inodes();
}

#[test]
fn memory_files_keep_content_size_and_seals() {
    Target::start(
        r#"
a = os.memfd_create("shared", os.MFD_ALLOW_SEALING)
os.ftruncate(a, 1 << 20)
os.pwrite(a, b"deep inside", 700000)
os.lseek(a, 11, 0)
window = mmap.mmap(a, 1 << 20)
sealed = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
os.write(sealed, b"for good")
fcntl.fcntl(sealed, 1033, 0x8 | 0x4 | 0x2)
def change():
    window[0:5] = b"dirty"
    os.pwrite(a, b"DEEP", 700000)
    os.lseek(a, 0, 0)
    os.close(sealed)
def check():
    assert os.pread(a, 11, 700000) == b"deep inside" and os.pread(a, 5, 0) == bytes(5)
    assert window[700000:700011] == b"deep inside" and os.lseek(a, 0, 1) == 11
    assert os.pread(sealed, 100, 0) == b"for good"
    assert fcntl.fcntl(sealed, 1034) == 0xe
steps(change, check)
"#,
    )
    .round_trip_changing_inodes();
}

#[test]
fn locks_of_all_three_kinds_are_taken_again() {
    Target::start(
        r#"
def ofd(fd, kind, start, length):
    fcntl.fcntl(fd, 37, struct.pack("hhqqi4x", kind, 0, start, length, 0))
path = "@DIR@/f"
f = os.open(path, os.O_RDWR | os.O_CREAT)
fcntl.flock(f, fcntl.LOCK_EX)
g = os.open("@DIR@/g", os.O_RDWR | os.O_CREAT)
ofd(g, fcntl.F_WRLCK, 10, 20)
p = os.open("@DIR@/p", os.O_RDWR | os.O_CREAT)
fcntl.lockf(p, fcntl.LOCK_EX, 100, 50)
fcntl.lockf(p, fcntl.LOCK_SH, 0, 500)
expected = [("FLOCK", "WRITE", "0", "EOF"), ("OFDLCK", "WRITE", "10", "29"),
    ("POSIX", "READ", "500", "EOF"), ("POSIX", "WRITE", "50", "149")]
def denied(test):
    child = os.fork()
    if child == 0:
        try:
            test()
            os._exit(1)
        except OSError:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
def change():
    fcntl.flock(f, fcntl.LOCK_UN)
    os.close(g)
    fcntl.lockf(p, fcntl.LOCK_UN)
    fcntl.lockf(p, fcntl.LOCK_EX, 1, 900)
def check():
    lines = sorted(" ".join(l.split()[2:]) for fd in (f, g, p) for l in fdinfo(fd).splitlines() if "lock:" in l)
    kinds = [(l.split()[0], l.split()[2], *l.split()[-2:]) for l in lines]
    assert kinds == expected, kinds
    other = os.open(path, os.O_RDWR)
    assert denied(lambda: fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB))
    os.close(other)
steps(change, check)
"#,
    )
    .round_trip();
}

#[test]
fn epoll_targets_come_back() {
    Target::start(
        r#"
r, w = os.pipe()
e = os.eventfd(1)
inner = select.epoll()
inner.register(e, select.EPOLLIN)
outer = select.epoll()
outer.register(inner.fileno(), select.EPOLLIN)
outer.register(r, select.EPOLLIN | select.EPOLLET)
class Event(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("events", ctypes.c_uint32), ("data", ctypes.c_uint64)]
gone = os.dup(w)
libc.epoll_ctl(outer.fileno(), 1, gone, ctypes.byref(Event(select.EPOLLOUT, 0x1234567890)))
os.close(gone)
os.write(w, b"x")
def targets(fd):
    return sorted(tuple(l.split()[i] for i in (1, 3, 5)) for l in fdinfo(fd).splitlines() if l.startswith("tfd"))
inner_before, outer_before = targets(inner.fileno()), targets(outer.fileno())
assert len(outer_before) == 3
def change():
    outer.unregister(r)
    outer.modify(inner.fileno(), 0)
    outer.register(0, select.EPOLLIN)
    os.close(e)
    os.read(r, 1)
    os.close(inner.fileno())
def check():
    assert targets(inner.fileno()) == inner_before, (targets(inner.fileno()), inner_before)
    assert targets(outer.fileno()) == outer_before, (targets(outer.fileno()), outer_before)
    events = (Event * 8)()
    n = libc.epoll_wait(outer.fileno(), events, 8, 0)
    data = sorted(events[i].data & 0xffffffffff for i in range(n))
    assert data == sorted([0x1234567890, inner.fileno(), r]), data
    n = libc.epoll_wait(outer.fileno(), events, 8, 0)
    assert n == 2, "the edge is reported twice"
steps(change, check)
"#,
    )
    .round_trip_once();
}

#[test]
fn watches_come_back_with_their_numbers() {
    Target::start(
        r#"
os.mkdir("@DIR@/watched")
i = libc.inotify_init1(os.O_NONBLOCK)
for n in range(4):
    wd = libc.inotify_add_watch(i, b"/tmp", 0x400)
    libc.inotify_rm_watch(i, wd)
wd = libc.inotify_add_watch(i, b"@DIR@/watched", 0x100 | 0x200)
try:
    while True:
        os.read(i, 4096)
except BlockingIOError:
    pass
lines = [l for l in fdinfo(i).splitlines() if l.startswith("inotify")]
def change():
    libc.inotify_rm_watch(i, wd)
    libc.inotify_add_watch(i, b"/etc", 0x100)
def check():
    assert [l for l in fdinfo(i).splitlines() if l.startswith("inotify")] == lines
    open("@DIR@/watched/new", "w").close()
    got, mask, _, _ = struct.unpack_from("iIII", os.read(i, 4096))
    assert (got, mask) == (wd, 0x100), (got, mask)
    os.unlink("@DIR@/watched/new")
    os.read(i, 4096)
steps(change, check)
"#,
    )
    .round_trip();
}

#[test]
fn a_lost_queue_of_events_is_reported_as_overflow() {
    let mut target = Target::start(
        r#"
os.mkdir("@DIR@/watched")
i = libc.inotify_init1(os.O_NONBLOCK)
wd = libc.inotify_add_watch(i, b"@DIR@/watched", 0x100)
open("@DIR@/watched/new", "w").close()
def change():
    os.read(i, 4096)
def check():
    got, mask, _, _ = struct.unpack_from("iIII", os.read(i, 4096))
    assert (got, mask) == (-1, 0x4000), (got, mask)
steps(change, check)
"#,
    );
    target.expect("ready");
    let tables = target.capture();
    assert_eq!(tables, target.capture(), "looking took an event out");
    target.ask("change", "changed");
    target.restore(&tables);
    target.ask("check", "PASS");
}
