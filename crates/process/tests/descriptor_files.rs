//! Files, directories and devices: offsets, flags, sharing, deleted files.

mod descriptor_common;
use descriptor_common::Target;

#[test]
fn offsets_and_flags_come_back() {
    Target::start(
        r#"
a = os.open("@DIR@/a", os.O_RDWR | os.O_CREAT, 0o644)
os.write(a, b"0123456789")
os.lseek(a, 4, 0)
log = os.open("@DIR@/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
os.write(log, b"one\n")
path = os.open("@DIR@/a", os.O_PATH)
os.set_inheritable(path, True)
def change():
    os.lseek(a, 9, 0)
    fcntl.fcntl(a, fcntl.F_SETFL, os.O_APPEND | os.O_NONBLOCK)
    os.close(log)
    os.close(path)
    os.set_inheritable(a, True)
    os.dup2(a, 40)
    os.open("/etc/passwd", os.O_RDONLY)
def check():
    assert os.lseek(a, 0, 1) == 4
    assert fcntl.fcntl(a, fcntl.F_GETFL) & (os.O_APPEND | os.O_NONBLOCK) == 0
    assert not os.get_inheritable(a)
    assert fcntl.fcntl(log, fcntl.F_GETFL) & os.O_APPEND
    assert fcntl.fcntl(path, fcntl.F_GETFL) & os.O_PATH
    assert os.get_inheritable(path)
    assert os.lseek(log, 0, 1) == 4
steps(change, check)
"#,
    )
    .round_trip();
}

#[test]
fn an_unchanged_table_is_left_alone() {
    let mut target = Target::start(
        r#"
a = os.open("@DIR@/a", os.O_RDWR | os.O_CREAT, 0o644)
r, w = os.pipe()
e = os.eventfd(3)
steps(lambda: None, lambda: None)
"#,
    );
    target.expect("ready");
    let tables = target.capture();
    let report = target.restore(&tables);
    assert_eq!((report.made, report.edited), (0, 0));
    target.ask("check", "PASS");
}

#[test]
fn sharing_by_dup_and_fork_is_kept() {
    Target::start(
        r#"
a = os.open("@DIR@/a", os.O_RDWR | os.O_CREAT, 0o644)
os.write(a, b"0123456789")
b = os.dup(a)
apart = os.open("@DIR@/a", os.O_RDWR)
to_child, from_parent = os.pipe()
to_parent, from_child = os.pipe()
child = os.fork()
if child == 0:
    while True:
        word = os.read(to_child, 1)
        if word == b"s":
            os.lseek(a, 7, 0)
        elif word == b"c":
            os.close(b)
            os.close(a)
        elif word == b"g":
            os.lseek(a, 3, 1)
        elif word == b"":
            os._exit(0)
        os.write(from_child, b"k")
def tell(word):
    os.write(from_parent, word)
    assert os.read(to_parent, 1) == b"k"
os.lseek(a, 2, 0)
def change():
    os.close(a)
    os.close(b)
    os.lseek(apart, 5, 0)
    tell(b"c")
def check():
    assert os.lseek(a, 0, 1) == 2 and os.lseek(b, 0, 1) == 2
    assert os.lseek(apart, 0, 1) == 10 or os.lseek(apart, 0, 1) == 0
    tell(b"s")
    assert os.lseek(a, 0, 1) == 7 and os.lseek(b, 0, 1) == 7, "sharing with the child is lost"
    tell(b"g")
    assert os.lseek(b, 0, 1) == 10
    assert os.lseek(apart, 0, 1) == 0, "two descriptions became one"
    os.lseek(a, 2, 0)
steps(change, check)
"#,
    )
    .round_trip();
}

#[test]
fn deleted_files_keep_their_content() {
    Target::start(
        r#"
a = os.open("@DIR@/a", os.O_RDWR | os.O_CREAT, 0o640)
os.write(a, b"precious" * 1000)
again = os.open("@DIR@/a", os.O_RDONLY)
os.unlink("@DIR@/a")
os.lseek(a, 8, 0)
anonymous = os.open("@DIR@", os.O_TMPFILE | os.O_RDWR, 0o600)
os.write(anonymous, b"nameless")
def table():
    return sorted(int(n) for n in os.listdir("/proc/self/fd"))[:-1]
def change():
    os.ftruncate(a, 0)
    os.write(a, b"spoiled")
    os.pwrite(anonymous, b"NAME", 0)
    os.close(again)
    with open("@DIR@/a", "w") as f:
        f.write("a new file of the same name")
def check():
    assert os.lseek(a, 0, 1) == 8
    assert os.pread(a, 100000, 0) == b"precious" * 1000
    assert os.pread(anonymous, 100, 0) == b"nameless"
    assert os.pread(again, 8, 8) == b"precious"
    os.pwrite(a, b"PRECIOUS", 8)
    assert os.pread(again, 8, 8) == b"PRECIOUS", "one file became two"
    os.pwrite(a, b"precious", 8)
    assert os.fstat(a).st_nlink == 0 and os.fstat(a).st_mode & 0o777 == 0o640
    if os.path.exists("@DIR@/a"):
        assert open("@DIR@/a").read() == "a new file of the same name"
steps(change, check)
"#,
    )
    .round_trip_changing_inodes();
}

#[test]
fn renamed_files_and_other_hard_links_are_found() {
    Target::start(
        r#"
a = os.open("@DIR@/a", os.O_RDWR | os.O_CREAT, 0o644)
os.rename("@DIR@/a", "@DIR@/b")
ino = os.fstat(a).st_ino
c = os.open("@DIR@/c", os.O_RDWR | os.O_CREAT, 0o644)
os.link("@DIR@/c", "@DIR@/d")
def change():
    os.close(a)
    os.close(c)
def check():
    assert os.fstat(a).st_ino == ino
    assert os.fstat(c).st_nlink == 2
steps(change, check)
"#,
    )
    .round_trip();
}

#[test]
fn directories_keep_position_and_working_directory() {
    Target::start(
        r#"
os.mkdir("@DIR@/d")
for i in range(50):
    open(f"@DIR@/d/{i}", "w").close()
d = os.open("@DIR@/d", os.O_RDONLY | os.O_DIRECTORY)
buffer = ctypes.create_string_buffer(600)
assert libc.syscall(217, d, buffer, 600) > 0
where = os.lseek(d, 0, 1)
os.chdir("@DIR@/d")
def change():
    os.lseek(d, 0, 0)
    os.chdir("/")
    os.close(d)
def check():
    assert os.lseek(d, 0, 1) == where
    assert os.getcwd().endswith("/d")
steps(change, check)
"#,
    )
    .round_trip();
}

#[test]
fn a_removed_working_directory_is_one_again() {
    Target::start(
        r#"
os.mkdir("@DIR@/gone")
os.chdir("@DIR@/gone")
os.rmdir("@DIR@/gone")
def change():
    os.chdir("/")
def check():
    try:
        os.getcwd()
        raise AssertionError("the directory has a name")
    except FileNotFoundError:
        pass
steps(change, check)
"#,
    )
    .round_trip_changing_inodes();
}

#[test]
fn plain_devices_come_back() {
    Target::start(
        r#"
names = ["null", "zero", "full", "random", "urandom"]
fds = [os.open("/dev/" + n, os.O_RDWR) for n in names]
def change():
    for fd in fds:
        os.close(fd)
    for fd in fds:
        os.open("/etc/passwd", os.O_RDONLY)
def check():
    assert os.read(fds[0], 1) == b"" and os.read(fds[1], 2) == b"\0\0"
    try:
        os.write(fds[2], b"x")
        raise AssertionError("full took it")
    except OSError as e:
        assert e.errno == errno.ENOSPC
    assert len(os.read(fds[4], 10)) == 10
steps(change, check)
"#,
    )
    .round_trip();
}

#[test]
fn what_is_not_known_is_refused_by_name() {
    let mut target = Target::start(
        r#"
libc.syscall(323, 1)
lease = os.open("@DIR@/lease", os.O_RDONLY | os.O_CREAT)
fcntl.fcntl(lease, fcntl.F_SETLEASE, fcntl.F_RDLCK)
steps(lambda: None, lambda: None)
"#,
    );
    target.expect("ready");
    let text = target.refusals();
    assert!(
        text.contains("userfaultfd") && text.contains("descriptor 3"),
        "{text}"
    );
    assert!(text.contains("lease") && text.contains("descriptor 4"), "{text}");
    target.ask("check", "PASS");
}
