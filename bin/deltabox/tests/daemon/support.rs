//! A daemon of a test's own, and what can be seen of it from outside.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::Value;

/// Long enough for a busy machine; nothing here takes seconds by itself.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A state directory whose daemon ends with it.
pub struct Home(tempfile::TempDir);

impl Home {
    pub fn new() -> Self {
        let mut builder = tempfile::Builder::new();
        Self(builder.prefix("deltabox-test-").tempdir_in("/var/tmp").unwrap())
    }

    /// With a daemon whose store has this size.
    pub fn with_store(size: &str) -> Self {
        let home = Self::new();
        let mut daemon = home.serve(&["--store-size", size, "--pool", "1"], &[]);
        // Reaped when it ends; the state directory's end stops it.
        std::thread::spawn(move || daemon.wait());
        home
    }

    /// A daemon in the foreground, which listens or has ended. Its log is `daemon.log` as ever.
    pub fn serve(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Child {
        let log = fs::File::create(self.path().join("daemon.log")).unwrap();
        let mut serve = self.deltabox(&[&["serve"], arguments].concat());
        serve.envs(environment.iter().copied()).stderr(log);
        let mut daemon = serve.spawn().unwrap();
        let socket = self.path().join("daemon.sock");
        until("the daemon listens", || {
            socket.exists() || daemon.try_wait().unwrap().is_some()
        });
        daemon
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn deltabox<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_deltabox"));
        command
            .env("DELTABOX_HOME", self.path())
            .args(arguments)
            .stdin(Stdio::null());
        command
    }

    /// The outcome of a command, which must end in [`PATIENCE`].
    pub fn output<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Output {
        let mut command = self.deltabox(arguments);
        let child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap();
        let (done, ended) = std::sync::mpsc::channel();
        std::thread::spawn(move || drop(done.send(child.wait_with_output())));
        match ended.recv_timeout(PATIENCE) {
            Ok(output) => output.unwrap(),
            Err(_) => {
                let _ = pidfd_send_signal(&process, Signal::KILL);
                let words: Vec<_> = arguments.iter().map(|a| a.as_ref().to_string_lossy()).collect();
                panic!("{words:?} hangs; the daemon's log: {}", self.log());
            }
        }
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.path().join("daemon.log")).unwrap_or_default()
    }

    /// Standard output of a command that must succeed, without the last newline.
    #[track_caller]
    pub fn ok<S: AsRef<OsStr> + std::fmt::Debug>(&self, arguments: &[S]) -> String {
        let output = self.output(arguments);
        assert!(
            output.status.success(),
            "{arguments:?}: {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    #[track_caller]
    pub fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.ok(&[arguments, &["--json"]].concat())).unwrap()
    }

    /// A shell script inside that must succeed.
    #[track_caller]
    pub fn sh(&self, sandbox: &str, script: &str) -> String {
        self.ok(&["exec", sandbox, "--", "/bin/sh", "-euc", script])
    }

    pub fn fails<S: AsRef<OsStr>>(&self, arguments: &[S]) -> (i32, String) {
        let output = self.output(arguments);
        let code = output.status.code().unwrap();
        (code, String::from_utf8(output.stderr).unwrap())
    }

    /// A refusal with this exit code: one line of what and why, and at most one of what to do.
    #[track_caller]
    pub fn refuses<S: AsRef<OsStr> + std::fmt::Debug>(&self, code: i32, arguments: &[S]) -> String {
        let (got, said) = self.fails(arguments);
        assert_eq!(got, code, "{arguments:?}: {said}");
        assert_clear(&said);
        said
    }

    pub fn daemon(&self) -> Option<Pid> {
        let text = fs::read_to_string(self.path().join("daemon.pid")).ok()?;
        Pid::from_raw(text.trim().parse().ok()?)
    }

    pub fn kill_daemon(&self) {
        let daemon = pidfd_open(self.daemon().unwrap(), PidfdFlags::empty()).unwrap();
        pidfd_send_signal(&daemon, Signal::KILL).unwrap();
        assert!(ended(&daemon, PATIENCE), "a killed daemon is still there");
    }

    /// The name of the cgroup that all cgroups of this daemon are in.
    pub fn cgroup(&self, sandbox: &str) -> String {
        let init = self.json(&["inspect", sandbox])["init_pid"].as_i64().unwrap();
        let places = fs::read_to_string(format!("/proc/{init}/cgroup")).unwrap();
        let name = places
            .split(['/', '\n'])
            .find(|part| part.starts_with("deltabox-"));
        name.unwrap().to_owned()
    }

    /// Loop devices of this state directory's store.
    pub fn loop_devices(&self) -> usize {
        let devices = fs::read_dir("/sys/block").unwrap().flatten();
        devices
            .filter_map(|device| fs::read_to_string(device.path().join("loop/backing_file")).ok())
            .filter(|file| Path::new(file.trim()).starts_with(self.path()))
            .count()
    }

    /// Volumes in the store, as the daemon sees it.
    pub fn volumes(&self) -> usize {
        let daemon = self.daemon().unwrap().as_raw_nonzero();
        let place = format!("/proc/{daemon}/root{}/store/mnt/volumes", self.path().display());
        fs::read_dir(place).unwrap().count()
    }

    /// Mounts of this mount namespace below the state directory.
    pub fn mounts(&self) -> usize {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        table.matches(self.path().to_str().unwrap()).count()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let daemon = self
            .daemon()
            .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        let stopped = self.deltabox(&["stop"]).output();
        if let Some(daemon) = daemon
            && !stopped.is_ok_and(|output| output.status.success())
        {
            let _ = pidfd_send_signal(&daemon, Signal::KILL);
            ended(&daemon, PATIENCE);
        }
    }
}

/// Whether a process ends in time.
pub fn ended(process: &OwnedFd, within: Duration) -> bool {
    let timeout = Timespec {
        tv_sec: within.as_secs() as i64,
        tv_nsec: 0,
    };
    poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&timeout)).is_ok_and(|ready| ready > 0)
}

/// Waits for what must become true.
#[track_caller]
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "waited too long until {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[track_caller]
pub fn assert_clear(said: &str) {
    let mut lines = said.lines();
    let first = lines.next().unwrap_or_default();
    assert!(first.starts_with("error: ") && first.len() > 12, "{said}");
    assert!(
        lines.next().is_none_or(|line| line.starts_with("hint: ")),
        "{said}"
    );
    assert_eq!(lines.next(), None, "{said}");
}

/// All descendants of a process, as descriptors that no later process can be mistaken for.
pub fn descendants(of: Pid) -> Vec<(i32, OwnedFd)> {
    let parents: Vec<(i32, i32)> = fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid: i32| Some((pid, parent_of(pid)?)))
        .collect();
    let mut found = vec![of.as_raw_nonzero().get()];
    let mut at = 0;
    while at < found.len() {
        let parent = found[at];
        found.extend(parents.iter().filter(|(_, p)| *p == parent).map(|(pid, _)| *pid));
        at += 1;
    }
    let open = |pid: &i32| {
        let process = pidfd_open(Pid::from_raw(*pid)?, PidfdFlags::empty()).ok()?;
        Some((*pid, process))
    };
    found.iter().skip(1).filter_map(open).collect()
}

fn parent_of(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// Every cgroup directory at or below one of this name.
pub fn cgroups(name: &str) -> Vec<PathBuf> {
    fn walk(directory: &Path, depth: usize, name: &str, inside: bool, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let inside = inside || entry.file_name() == name;
            if inside {
                found.push(entry.path());
            }
            if depth > 0 {
                walk(&entry.path(), depth - 1, name, inside, found);
            }
        }
    }
    let mut found = Vec::new();
    walk(Path::new("/sys/fs/cgroup"), 7, name, false, &mut found);
    found
}

/// Different in every run, so that many runs find what one does not; panics show what it was.
pub struct Random(u64);

impl Random {
    pub fn new() -> Self {
        let seed = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64 | 1;
        eprintln!("seed {seed}");
        Self(seed)
    }

    /// Another one, for another thread.
    pub fn split(&mut self) -> Self {
        Self(self.below(usize::MAX) as u64 | 1)
    }

    /// Less than `end` (xorshift64).
    pub fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }
}

/// A number that can be set from outside.
pub fn setting(name: &str, otherwise: usize) -> usize {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap())
}
