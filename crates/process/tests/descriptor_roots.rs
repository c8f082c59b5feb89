//! The root of the sandbox is replaced by another mount under stopped programs: descriptors follow it, frozen layers
//! are not written to, no path comes back and no new file of the same name is touched.

mod descriptor_common;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;

use descriptor_common::Target;
use rustix::fs::{Mode, OFlags};

/// Runs the interpreter on an overlay of layers, in a mount namespace that goes away with it.
const ENTER: &str = r#"
set -e
mount --make-rprivate /
L="$1"; shift
mount -t tmpfs none "$L"
mkdir -p "$L/base" "$L/u1" "$L/w1" "$L/m1"
mount --bind / "$L/base"
mount -t overlay none -o "lowerdir=/,upperdir=$L/u1,workdir=$L/w1,index=off,xino=on,redirect_dir=on" "$L/m1"
mount --rbind "$L" "$L/m1/mnt"
mount --rbind /proc "$L/m1/proc"
mount --rbind /dev "$L/m1/dev"
cd "$L/m1"
mkdir -p data old
pivot_root . old
umount -l old
exec python3 "$@"
"#;

/// Puts a new overlay, with the layers given, in the place of the root.
const SWITCH: &str = r#"
set -e
cd /mnt
mkdir -p "$1" "$1w" "$1m"
mount -t overlay none -o "lowerdir=$2,upperdir=/mnt/$1,workdir=/mnt/$1w,index=off,xino=on,redirect_dir=on" "/mnt/$1m"
mount --rbind /mnt "/mnt/$1m/mnt"
mount --rbind /proc "/mnt/$1m/proc"
mount --rbind /dev "/mnt/$1m/dev"
cd "/mnt/$1m"
mkdir -p old
pivot_root . old
umount -l old
"#;

struct Rooted {
    target: Target,
    /// Keeps the place where the layers are mounted.
    _directory: tempfile::TempDir,
}

impl Rooted {
    fn start(program: &str) -> Rooted {
        let directory = tempfile::tempdir().unwrap();
        let layers = directory.path().join("layers");
        std::fs::create_dir(&layers).unwrap();
        let mut command = Command::new("unshare");
        command
            .args(["-m", "sh", "-c", ENTER, "sh"])
            .arg(&layers)
            .stderr(std::process::Stdio::null());
        let mut target = Target::start_with(program, &mut command, |_| {});
        target.expect("ready");
        let mut rooted = Rooted {
            target,
            _directory: directory,
        };
        rooted.look_at_root();
        rooted
    }

    fn look_at_root(&mut self) {
        let path = format!("/proc/{}/root", self.target.pid());
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root: OwnedFd = rustix::fs::open(path, flags, Mode::empty()).unwrap();
        self.target.set_root(root);
    }

    /// Another root: a fresh upper on top of what the first one held.
    fn switch(&mut self, upper: &str) {
        let status = Command::new("nsenter")
            .args([
                "-t",
                &self.target.pid().to_string(),
                "-m",
                "sh",
                "-c",
                SWITCH,
                "sh",
            ])
            .args([upper, "/mnt/u1:/mnt/base"])
            .status()
            .unwrap();
        assert!(status.success());
        self.look_at_root();
    }

    /// Every file of the frozen layer with its size, times and content.
    fn frozen(&self) -> Vec<(PathBuf, u64, i64, Vec<u8>)> {
        let mut found = Vec::new();
        let mut pending = vec![PathBuf::from(format!("/proc/{}/root/mnt/u1", self.target.pid()))];
        while let Some(directory) = pending.pop() {
            for entry in std::fs::read_dir(&directory).unwrap() {
                let entry = entry.unwrap();
                let facts = entry.metadata().unwrap();
                let content = if facts.is_file() {
                    std::fs::read(entry.path()).unwrap()
                } else {
                    Vec::new()
                };
                found.push((entry.path(), facts.size(), facts.ctime_nsec(), content));
                if facts.is_dir() {
                    pending.push(entry.path());
                }
            }
        }
        found.sort();
        found
    }
}

#[test]
fn descriptors_follow_the_root_and_go_back_with_it() {
    let mut rooted = Rooted::start(PROGRAM);
    let tables = rooted.target.capture();
    // The checkpoint: what the programs wrote so far is frozen, and they go on upon it without noticing.
    rooted.switch("u2");
    let frozen = rooted.frozen();
    rooted.target.restore(&tables);
    rooted.target.ask("check", "PASS");
    rooted.target.ask("change", "changed");
    assert_eq!(
        rooted.frozen(),
        frozen,
        "something was written into a frozen layer"
    );
    // The rollback, twice, with different things done in between.
    for upper in ["u3", "u4"] {
        rooted.switch(upper);
        rooted.target.restore(&tables);
        rooted.target.ask("check", "PASS");
        rooted.target.ask("change", "changed");
        assert_eq!(
            rooted.frozen(),
            frozen,
            "something was written into a frozen layer"
        );
    }
}

const PROGRAM: &str = r#"
a = os.open("/data/a", os.O_RDWR | os.O_CREAT, 0o644)
os.write(a, b"0123456789")
os.lseek(a, 4, 0)
again = os.dup(a)
log = os.open("/data/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
os.write(log, b"one\n")
base = os.open("/etc/passwd", os.O_RDONLY)
os.lseek(base, 7, 0)
moved = os.open("/data/before", os.O_RDWR | os.O_CREAT)
os.rename("/data/before", "/data/after")
deleted = os.open("/data/deleted", os.O_RDWR | os.O_CREAT)
os.write(deleted, b"no name")
os.unlink("/data/deleted")
linked = os.open("/data/first", os.O_RDWR | os.O_CREAT)
os.link("/data/first", "/data/second")
os.unlink("/data/first")
os.makedirs("/data/sub")
os.chdir("/data/sub")
directory = os.open("/data", os.O_RDONLY | os.O_DIRECTORY)
os.mkfifo("/data/fifo")
fifo = os.open("/data/fifo", os.O_RDWR)
os.write(fifo, b"in the fifo")
listener = socket.socket(socket.AF_UNIX)
listener.bind("/data/socket")
listener.listen()
client = socket.socket(socket.AF_UNIX)
client.connect("/data/socket")
server, _ = listener.accept()
watch = libc.inotify_init1(os.O_NONBLOCK)
number = libc.inotify_add_watch(watch, b"/data", 0x100)
fcntl.flock(a, fcntl.LOCK_EX)
fcntl.lockf(moved, fcntl.LOCK_EX, 10, 5)
inodes = [os.fstat(fd).st_ino for fd in (a, log, moved, linked, directory, fifo)]
def table():
    return sorted(int(n) for n in os.listdir("/proc/self/fd"))[:-1]
def change():
    os.write(a, b"changed")
    os.write(log, b"two\n")
    os.write(moved, b"changed")
    os.write(deleted, b" and changed")
    os.write(linked, b"changed")
    with open("/data/deleted", "w") as f:
        f.write("a new one of that name")
    os.rename("/data/after", "/data/elsewhere")
    os.rename("/data/sub", "/data/other")
    with open("/data/later", "w") as f:
        f.write("x")
    global extra
    extra = os.open("/data/later", os.O_RDWR)
    os.close(extra)
    os.read(fifo, 5)
    os.close(log)
    os.chdir("/")
def check():
    assert "FLOCK" in fdinfo(a)
    # Closing any descriptor of the file ends the lock: look at the beginning.
    assert "POSIX" in fdinfo(moved)
    assert not os.path.exists("/data/deleted") and not os.path.exists("/data/later")
    assert [os.fstat(fd).st_ino for fd in (a, log, moved, linked, directory, fifo)] == inodes
    assert os.lseek(a, 0, 1) == 4 and os.lseek(again, 0, 1) == 4
    os.write(again, b"X")
    assert open("/data/a").read() == "0123X56789" and os.lseek(a, 0, 1) == 5
    os.pwrite(a, b"4", 4)
    os.lseek(a, 4, 0)
    os.write(log, b"end\n")
    assert open("/data/log").read() == "one\nend\n"
    os.truncate("/data/log", 4)
    assert os.lseek(base, 0, 1) == 7 and os.read(base, 3) == open("/etc/passwd", "rb").read()[7:10]
    os.lseek(base, 7, 0)
    os.write(moved, b"m")
    assert open("/data/after").read() == "m"
    os.ftruncate(moved, 0)
    os.lseek(moved, 0, 0)
    assert os.pread(deleted, 100, 0) == b"no name" and os.fstat(deleted).st_nlink == 0
    os.pwrite(linked, b"l", 0)
    assert open("/data/second").read() == "l"
    os.ftruncate(linked, 0)
    assert os.getcwd() == "/data/sub" and os.path.samestat(os.stat("."), os.stat("/data/sub"))
    assert os.read(fifo, 100) == b"in the fifo"
    other = os.open("/data/fifo", os.O_RDWR)
    os.write(other, b"in the fifo")
    assert os.read(fifo, 100) == b"in the fifo"
    os.write(fifo, b"in the fifo")
    os.close(other)
    new = socket.socket(socket.AF_UNIX)
    new.connect("/data/socket")
    listener.accept()[0].close()
    client.send(b"still")
    assert server.recv(10) == b"still"
    open("/data/new", "w").close()
    assert struct.unpack_from("iI", os.read(watch, 4096)) == (number, 0x100)
    os.unlink("/data/new")
steps(change, check)
"#;
