//! Targets for the descriptor tests: small Python programs that set something up, change everything, and check
//! themselves. They are told what to do over stdin and answer over stdout, which are external to their state.

#![allow(dead_code)]

use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use deltabox_process::descriptor::{
    self, ContentDirectory, Environment, Error, ExternalId, Externals, Live, Member, Report, Tables,
    Terminals,
};
use deltabox_process::{FirstId, Host, HostPid, InsidePid, Process, stop};
use rustix::fs::{Mode, OFlags};

/// What every program starts with.
const PRELUDE: &str = r#"
import ctypes, errno, fcntl, json, mmap, os, select, signal, socket, stat, struct, sys, tempfile, termios, time
libc = ctypes.CDLL(None, use_errno=True)
def say(word):
    os.write(1, (word + "\n").encode())
def hear():
    line = b""
    while not line.endswith(b"\n"):
        try:
            byte = os.read(0, 1)
        except InterruptedError:
            continue
        if not byte:
            os._exit(0)
        line += byte
    return line.decode().strip()
def wait_for(word):
    heard = hear()
    assert heard == word, (heard, word)
def fdinfo(fd):
    with open(f"/proc/self/fdinfo/{fd}") as f:
        return f.read()
def table():
    t = {}
    for name in sorted(os.listdir("/proc/self/fd"), key=int):
        try:
            t[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            pass
    return t
def steps(change, check):
    before = table()
    say("ready")
    while True:
        word = hear()
        if word == "change":
            change()
            say("changed")
        elif word == "check":
            after = table()
            assert after == before, (before, after)
            check()
            say("PASS")
        else:
            raise SystemExit(0)
"#;

/// A running program and its caller's side.
pub struct Target {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    pub externals: Externals,
    root: OwnedFd,
    pub scratch: tempfile::TempDir,
    contents: ContentDirectory,
}

impl Drop for Target {
    fn drop(&mut self) {
        for pid in descendants(self.child.id() as i32) {
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Target {
    /// Starts the program; `@DIR@` in its text becomes a directory of its own.
    pub fn start(program: &str) -> Target {
        // Not the test's own standard error: where that is a file, others write to it and move its offset.
        Target::start_with(program, Command::new("python3").stderr(Stdio::null()), |_| {})
    }

    /// As [`Target::start`], with a command to run the interpreter by and more externals.
    pub fn start_with(program: &str, command: &mut Command, register: impl FnOnce(&mut Externals)) -> Target {
        let scratch = tempfile::tempdir().unwrap();
        std::fs::create_dir(scratch.path().join("files")).unwrap();
        std::fs::create_dir(scratch.path().join("contents")).unwrap();
        let directory = scratch.path().join("files").to_str().unwrap().to_owned();
        let text = format!("{PRELUDE}\n{program}").replace("@DIR@", &directory);
        let script = scratch.path().join("program.py");
        std::fs::write(&script, text).unwrap();
        let mut child = command
            .arg("-u")
            .arg(&script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout = child.stdout.take().unwrap();
        let mut externals = Externals::new();
        // A pipe is one object, whichever end of it is looked at.
        externals.register_object(ExternalId(0), stdin.as_fd()).unwrap();
        externals.register_object(ExternalId(1), stdout.as_fd()).unwrap();
        register(&mut externals);
        let root = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let contents = ContentDirectory::open(&scratch.path().join("contents")).unwrap();
        Target {
            child,
            stdin: Some(stdin),
            stdout: BufReader::new(stdout),
            externals,
            root,
            scratch,
            contents,
        }
    }

    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub fn tell(&mut self, word: &str) {
        writeln!(self.stdin.as_mut().unwrap(), "{word}").unwrap();
    }

    pub fn expect(&mut self, word: &str) {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        assert_eq!(
            line.trim_end(),
            word,
            "the program said something else; its error is above"
        );
    }

    pub fn ask(&mut self, word: &str, answer: &str) {
        self.tell(word);
        self.expect(answer);
    }

    /// The root the program's files are looked up from.
    pub fn set_root(&mut self, root: OwnedFd) {
        self.root = root;
    }

    fn host(&self) -> TestHost {
        TestHost {
            top: self.pid(),
            root: self.root.try_clone().unwrap(),
        }
    }

    /// Stops everything and captures it.
    pub fn capture(&mut self) -> Tables {
        self.capture_after(None)
    }

    pub fn capture_after(&mut self, previous: Option<&Tables>) -> Tables {
        let mut tree = stop(&mut self.host()).unwrap();
        let mut live = self.survey(&tree.processes).unwrap();
        let tables = descriptor::capture(&mut live, &self.externals, previous, &mut self.contents).unwrap();
        descriptor::settle(&live, &mut tree.processes).unwrap();
        drop(live);
        tree.resume().unwrap();
        tables
    }

    fn survey(&self, processes: &[Process]) -> Result<Live, Error> {
        let members: Vec<Member> = processes.iter().map(Member::of).collect();
        descriptor::survey(&members, self.root.as_fd(), FirstId(0), &self.externals)
    }

    /// What cannot be carried, as text.
    pub fn refusals(&mut self) -> String {
        let tree = stop(&mut self.host()).unwrap();
        let result = self.survey(&tree.processes).map(drop);
        tree.resume().unwrap();
        result.unwrap_err().to_string()
    }

    /// Stops everything and restores it.
    pub fn restore(&mut self, wanted: &Tables) -> Report {
        self.try_restore(wanted).unwrap()
    }

    pub fn try_restore(&mut self, wanted: &Tables) -> Result<Report, Error> {
        let mut tree = stop(&mut self.host()).unwrap();
        let environment = Environment {
            first_id: FirstId(0),
            root: self.root.as_fd(),
            network: None,
            ipc: None,
            externals: &self.externals,
            contents: &self.contents,
            terminals: &Terminals::new(),
            mapped: &std::collections::HashMap::new(),
        };
        let report = descriptor::restore(&mut tree.processes, wanted, &environment);
        tree.resume().unwrap();
        report
    }

    /// Captures, lets the program change everything, restores, lets it check itself; then once more. What is
    /// captured after a restore has to equal what was captured before.
    pub fn round_trip(&mut self) -> Tables {
        self.round_trip_of(true)
    }

    /// As [`Target::round_trip`], for objects that are made anew with another inode.
    pub fn round_trip_changing_inodes(&mut self) -> Tables {
        self.round_trip_of(false)
    }

    /// Capture, change, restore, check: for programs whose check takes things out for good.
    pub fn round_trip_once(&mut self) -> Tables {
        self.expect("ready");
        let tables = self.capture();
        same(&tables, &self.capture_after(Some(&tables)));
        for _ in 0..3 {
            self.ask("change", "changed");
            self.restore(&tables);
        }
        self.ask("check", "PASS");
        self.restore(&tables);
        self.ask("check", "PASS");
        tables
    }

    fn round_trip_of(&mut self, exact: bool) -> Tables {
        self.expect("ready");
        let tables = self.capture();
        self.ask("check", "PASS");
        let tables_again = self.capture_after(Some(&tables));
        if exact {
            same(&tables, &tables_again);
        }
        for _ in 0..2 {
            self.ask("change", "changed");
            self.restore(&tables);
            self.ask("check", "PASS");
        }
        tables
    }
}

/// Looking has to leave everything as it is.
fn same(a: &Tables, b: &Tables) {
    for (one, other) in a.descriptions.iter().zip(&b.descriptions) {
        assert_eq!(one, other, "a check or a capture changed something");
    }
    assert!(a == b, "a check or a capture changed something");
}

struct TestHost {
    top: i32,
    root: OwnedFd,
}

/// A process and its descendants.
pub fn descendants(top: i32) -> Vec<i32> {
    let mut all = vec![top];
    let mut at = 0;
    while at < all.len() {
        let pid = all[at];
        at += 1;
        let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
            continue;
        };
        for thread in threads.flatten() {
            let children = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            all.extend(children.split_whitespace().map(|c| c.parse::<i32>().unwrap()));
        }
    }
    all
}

impl Host for TestHost {
    fn freeze(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn thaw(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn pids(&mut self) -> io::Result<Vec<HostPid>> {
        Ok(descendants(self.top)
            .into_iter()
            .filter_map(HostPid::new)
            .collect())
    }

    fn init_pid(&self) -> HostPid {
        HostPid::new(1).unwrap()
    }

    fn first_id(&self) -> FirstId {
        FirstId(0)
    }
    fn set_next_pid(&mut self, _: InsidePid) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn skeleton(&mut self, _: InsidePid) -> io::Result<HostPid> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    fn net_namespace(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }
}
