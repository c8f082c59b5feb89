//! Injected system calls: results, buffers, and that the program cannot tell.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::BorrowedFd;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use deltabox_process::{Batch, FirstId, Host, HostPid, InsidePid, stop};

/// A few processes, without a sandbox around them.
struct Loose(Vec<HostPid>);

impl Host for Loose {
    fn freeze(&mut self) -> std::io::Result<()> {
        Ok(())
    }
    fn thaw(&mut self) -> std::io::Result<()> {
        Ok(())
    }
    fn pids(&mut self) -> std::io::Result<Vec<HostPid>> {
        Ok(self.0.clone())
    }
    fn init_pid(&self) -> HostPid {
        HostPid::from(rustix::process::getpid())
    }
    fn first_id(&self) -> FirstId {
        FirstId(0)
    }
    fn set_next_pid(&mut self, _: InsidePid) -> std::io::Result<()> {
        Err(std::io::ErrorKind::Unsupported.into())
    }
    fn skeleton(&mut self, _: InsidePid) -> std::io::Result<HostPid> {
        Err(std::io::ErrorKind::Unsupported.into())
    }
    fn root(&self) -> BorrowedFd<'_> {
        rustix::fs::CWD
    }
    fn net_namespace(&self) -> BorrowedFd<'_> {
        rustix::fs::CWD
    }
}

/// A child that is killed and reaped when it goes out of scope.
struct Program(Child);

impl Program {
    fn start(command: &mut Command) -> (Program, Loose) {
        let child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = HostPid::new(child.id().try_into().unwrap()).unwrap();
        (Program(child), Loose(vec![pid]))
    }

    fn state(&self) -> char {
        let pid = HostPid::new(self.0.id().try_into().unwrap()).unwrap();
        deltabox_process::procfs::status(pid).unwrap().state
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn calls_run_with_the_identity_of_the_process() {
    let (program, mut host) = Program::start(Command::new("sleep").arg("1000"));
    let mut tree = stop(&mut host).unwrap();
    let process = &mut tree.processes[0];
    let mut batch = Batch::new();
    let pid = batch.call(libc::SYS_getpid, &[]);
    let name = batch.output(16);
    let prctl = batch.call(libc::SYS_prctl, &[libc::PR_GET_NAME.into(), name.into()]);
    let path = batch.input_str(b"/no/such/path");
    let bad = batch.call(libc::SYS_openat, &[libc::AT_FDCWD.into(), path.into(), 0.into()]);
    process.run(&mut batch).unwrap();
    assert_eq!(batch.result(pid), Ok(u64::from(program.0.id())));
    assert_eq!(batch.result(prctl), Ok(0));
    assert!(batch.bytes(name).starts_with(b"sleep\0"));
    assert_eq!(batch.result(bad), Err(rustix::io::Errno::NOENT));
    assert_eq!(
        process.call(libc::SYS_getppid, &[]).unwrap(),
        Ok(u64::from(std::process::id()))
    );
}

#[test]
fn a_batch_stops_at_the_first_error_if_asked_and_big_ones_fit() {
    let (_program, mut host) = Program::start(Command::new("sleep").arg("1000"));
    let mut tree = stop(&mut host).unwrap();
    let mut batch = Batch::new().stop_on_error();
    batch.call(libc::SYS_getpid, &[]);
    batch.call(libc::SYS_close, &[(-1).into()]);
    let last = batch.call(libc::SYS_getpid, &[]);
    tree.processes[0].run(&mut batch).unwrap();
    assert_eq!(batch.first_error(), Some((1, rustix::io::Errno::BADF)));
    assert_eq!(batch.result(last), Err(rustix::io::Errno::CANCELED));

    let mut batch = Batch::new();
    let calls: Vec<_> = (0..3000).map(|_| batch.call(libc::SYS_getpid, &[])).collect();
    tree.processes[0].run(&mut batch).unwrap();
    assert!(calls.iter().all(|call| batch.result(*call).is_ok()));
}

/// Each line of `script` is a program that prints one line per second of work without being disturbed.
fn python(script: &str) -> (Program, Loose) {
    Program::start(Command::new("python3").arg("-u").arg("-c").arg(script))
}

fn line(program: &mut Program) -> String {
    let mut text = String::new();
    let stdout = program.0.stdout.as_mut().unwrap();
    // One byte at a time: a reader with a buffer would swallow later lines.
    BufReader::with_capacity(1, stdout).read_line(&mut text).unwrap();
    text.trim_end().to_owned()
}

/// Stops `count` times, running calls inside each time, then lets the program finish.
fn disturb(host: &mut Loose, count: usize) {
    for _ in 0..count {
        let mut tree = stop(host).unwrap();
        let before = std::fs::read_to_string(format!("/proc/{}/maps", tree.processes[0].pid())).unwrap();
        for place in 0..tree.processes[0].threads.len() {
            let mut batch = Batch::new();
            let pid = batch.call(libc::SYS_getpid, &[]);
            tree.processes[0].run_in(place, &mut batch).unwrap();
            assert!(batch.result(pid).is_ok());
        }
        tree.processes[0].settle().unwrap();
        let after = std::fs::read_to_string(format!("/proc/{}/maps", tree.processes[0].pid())).unwrap();
        assert_eq!(before, after, "an injected mapping stayed behind");
        tree.resume().unwrap();
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn interrupted_calls_of_every_kind_go_on() {
    let script = r"
import ctypes, os, select, signal, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
r, w = os.pipe()
results = {}
def work(name, fn):
    def run():
        start = time.monotonic(); value = fn(); results[name] = (value, ctypes.get_errno(), time.monotonic() - start)
    t = threading.Thread(target=run); t.start(); return t
class Ts(ctypes.Structure): _fields_ = [('s', ctypes.c_long), ('n', ctypes.c_long)]
half = Ts(0, 500_000_000)
buf = ctypes.create_string_buffer(4)
word = ctypes.c_int(7)
threads = [
    work('nanosleep', lambda: libc.nanosleep(ctypes.byref(half), None)),
    work('poll', lambda: libc.poll(None, 0, 500)),
    work('read', lambda: libc.read(r, buf, 4)),
    work('futex', lambda: libc.syscall(202, ctypes.byref(word), 0, 7, ctypes.byref(half), None, 0)),
    work('select', lambda: libc.select(0, None, None, None, ctypes.byref(Ts(0, 500_000)))),
    work('epoll', lambda: libc.epoll_wait(libc.epoll_create1(0), ctypes.create_string_buffer(64), 1, 500)),
]
print('ready')
sys.stdin.readline()
os.write(w, b'abcd')
for t in threads: t.join()
for name in sorted(results):
    value, errno, took = results[name]
    # epoll_wait alone is documented to end with EINTR after a stop (signal(7)).
    ok = value == {'nanosleep': 0, 'poll': 0, 'read': 4, 'futex': -1, 'select': 0, 'epoll': 0}[name]
    ok = ok or (name == 'epoll' and value == -1 and errno == 4)
    if name == 'futex': ok = ok and errno == 110
    if name != 'read' and value != -1: ok = ok and 0.49 < took < 2.0
    print(name, 'ok' if ok else (value, errno, took))
print('end')
";
    let (mut program, mut host) = python(script);
    assert_eq!(line(&mut program), "ready");
    disturb(&mut host, 20);
    program.0.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    let mut found = Vec::new();
    loop {
        let text = line(&mut program);
        if text == "end" || text.is_empty() {
            break;
        }
        found.push(text);
    }
    assert_eq!(
        found,
        [
            "epoll ok",
            "futex ok",
            "nanosleep ok",
            "poll ok",
            "read ok",
            "select ok"
        ]
    );
}

#[test]
fn blocked_ignored_and_pending_traps_survive() {
    let script = r"
import os, signal, sys
signal.signal(signal.SIGTRAP, signal.SIG_IGN)
print('ready'); sys.stdin.readline()
print(signal.getsignal(signal.SIGTRAP) == signal.SIG_IGN and open('/proc/self/status').read().split('SigIgn:')[1].split()[0])
got = []
signal.signal(signal.SIGTRAP, lambda *a: got.append(1))
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
os.kill(os.getpid(), signal.SIGTRAP); os.kill(os.getpid(), signal.SIGUSR1)
print('ready'); sys.stdin.readline()
print(sorted(int(s) for s in signal.sigpending()), got)
signal.signal(signal.SIGUSR1, lambda *a: got.append(2))
signal.pthread_sigmask(signal.SIG_UNBLOCK, range(1, 65))
print(sorted(got))
";
    let (mut program, mut host) = python(script);
    let say = |program: &mut Program| program.0.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    assert_eq!(line(&mut program), "ready");
    disturb(&mut host, 3);
    say(&mut program);
    let ignored = u64::from_str_radix(&line(&mut program), 16).unwrap();
    assert_ne!(ignored & (1 << 4), 0, "SIGTRAP was ignored and is not any more");
    assert_eq!(line(&mut program), "ready");
    disturb(&mut host, 3);
    say(&mut program);
    assert_eq!(line(&mut program), "[5, 10] []");
    assert_eq!(line(&mut program), "[1, 2]");
}

#[test]
fn a_job_control_stop_stays_one() {
    let (program, mut host) = Program::start(Command::new("sleep").arg("1000"));
    rustix::process::kill_process(host.0[0].pid(), rustix::process::Signal::STOP).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(program.state(), 'T');
    disturb(&mut host, 3);
    assert_eq!(program.state(), 'T');
    rustix::process::kill_process(host.0[0].pid(), rustix::process::Signal::CONT).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(program.state(), 'S');
}

#[test]
fn a_process_that_dies_while_stopped_is_an_error_and_no_hang() {
    let (mut program, mut host) = Program::start(Command::new("sleep").arg("1000"));
    let mut tree = stop(&mut host).unwrap();
    program.0.kill().unwrap();
    let error = tree.processes[0].call(libc::SYS_getpid, &[]).unwrap_err();
    assert!(error.is_gone(), "{error}");
}
