//! A world with one spawner, roots that are throwaway overlays of the machine's own root, and commands in them.

use std::ffi::OsString;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use deltabox_isolation::{
    Cell, CellSpec, CgroupDriver, Event, ExecSpec, ExitStatus, Limits, RootSpec, Spawner, Started, Stdio,
};
use rustix::fs::{AtFlags, Gid, Mode, Uid, chmodat, chownat, mkdirat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen,
};

static NEXT: AtomicU32 = AtomicU32::new(1);

/// A spawner with its cgroups, removed at the end.
pub struct World {
    pub spawner: Option<Arc<Spawner>>,
    pub driver: Option<Arc<CgroupDriver>>,
    pub state: String,
}

impl World {
    pub fn new() -> Self {
        let state = format!(
            "test-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let driver = Arc::new(CgroupDriver::detect(&state).unwrap());
        let spawner = Spawner::start(Command::new(spawner_program()), Arc::clone(&driver)).unwrap();
        Self {
            spawner: Some(Arc::new(spawner)),
            driver: Some(driver),
            state,
        }
    }

    pub fn spawner(&self) -> &Arc<Spawner> {
        self.spawner.as_ref().unwrap()
    }

    pub fn spec(&self, limits: Limits) -> CellSpec {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        CellSpec {
            id: format!("cell-{number}"),
            uid_base: 1_000_000 + number * 65536,
            limits,
        }
    }

    pub fn cell(&self) -> Cell {
        self.cell_with(Limits::default())
    }

    pub fn cell_with(&self, limits: Limits) -> Cell {
        let cell = self.spawner().cell(&self.spec(limits)).unwrap();
        cell.attach_root(
            root_for(cell.uid_base()),
            RootSpec {
                hostname: Some("box".into()),
                binds: vec![],
            },
        )
        .unwrap();
        cell
    }
}

impl Drop for World {
    fn drop(&mut self) {
        drop(self.spawner.take());
        let Some(driver) = self.driver.take().and_then(Arc::into_inner) else {
            return;
        };
        let removed = driver.sweep().and_then(|()| driver.remove());
        assert!(
            removed.is_ok() || std::thread::panicking(),
            "cgroups are left: {removed:?}"
        );
    }
}

pub fn spawner_program() -> &'static str {
    env!("CARGO_BIN_EXE_cell-spawner")
}

/// A detached overlay: the machine's root below, a new tmpfs on top, its top directory owned by the cell's root.
pub fn root_for(uid_base: u32) -> OwnedFd {
    let upper = tmpfs();
    for dir in ["upper", "work"] {
        mkdirat(&upper, dir, Mode::from_raw_mode(0o755)).unwrap();
    }
    for (dir, mode) in [
        ("upper/run", 0o755),
        ("upper/tmp", 0o1777),
        ("upper/root", 0o700),
        ("upper/mnt", 0o755),
    ] {
        mkdirat(&upper, dir, Mode::from_raw_mode(mode)).unwrap();
        chmodat(&upper, dir, Mode::from_raw_mode(mode), AtFlags::empty()).unwrap();
    }
    let owner = (Some(Uid::from_raw(uid_base)), Some(Gid::from_raw(uid_base)));
    for dir in ["upper", "upper/run", "upper/tmp", "upper/root", "upper/mnt"] {
        chownat(&upper, dir, owner.0, owner.1, AtFlags::empty()).unwrap();
    }
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    let set = |key: &str, value: &str| fsconfig_set_string(context.as_fd(), key, value).unwrap();
    set("lowerdir+", "/");
    set("upperdir", &format!("/proc/self/fd/{}/upper", upper.as_raw_fd()));
    set("workdir", &format!("/proc/self/fd/{}/work", upper.as_raw_fd()));
    fsconfig_set_flag(context.as_fd(), "volatile").unwrap();
    fsconfig_create(context.as_fd()).unwrap();
    fsmount(
        context.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )
    .unwrap()
}

pub fn tmpfs() -> OwnedFd {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    fsconfig_create(context.as_fd()).unwrap();
    fsmount(
        context.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )
    .unwrap()
}

/// What a command wrote and how it ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Output {
    pub text: String,
    pub status: ExitStatus,
}

pub fn spec(argv: &[&str], stdio: Stdio) -> ExecSpec {
    ExecSpec {
        argv: argv.iter().map(OsString::from).collect(),
        env: vec![(
            "PATH".into(),
            "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin".into(),
        )],
        cwd: "/".into(),
        uid: 0,
        gid: 0,
        groups: vec![],
        umask: 0o022,
        rlimits: vec![],
        stdio,
    }
}

/// Descriptors for a command with its output and errors in one pipe, and the pipe.
pub fn piped() -> (Stdio, std::fs::File) {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let null = std::fs::File::open("/dev/null").unwrap();
    let errors = write.try_clone().unwrap();
    (Stdio::Fds([null.into(), write, errors]), read.into())
}

pub fn start(cell: &Cell, argv: &[&str]) -> (Started, std::fs::File) {
    let (stdio, output) = piped();
    (cell.exec(spec(argv, stdio)).unwrap(), output)
}

pub fn run(cell: &Cell, argv: &[&str]) -> Output {
    run_spec(cell, |_| {}, argv)
}

pub fn run_spec(cell: &Cell, change: impl FnOnce(&mut ExecSpec), argv: &[&str]) -> Output {
    let (stdio, mut output) = piped();
    let mut spec = spec(argv, stdio);
    change(&mut spec);
    let started = cell.exec(spec).unwrap();
    let mut text = String::new();
    output.read_to_string(&mut text).unwrap();
    Output {
        text,
        status: wait_for(cell, &started),
    }
}

/// A shell script; its output without the last newline. It must succeed.
pub fn sh(cell: &Cell, script: &str) -> String {
    let output = run(cell, &["/bin/sh", "-c", script]);
    assert_eq!(output.status, ExitStatus::Code(0), "{script}: {}", output.text);
    output.text.trim_end().to_owned()
}

/// How the process ended; waits at most 30 s.
pub fn wait_for(cell: &Cell, started: &Started) -> ExitStatus {
    let end = Instant::now() + Duration::from_secs(30);
    while Instant::now() < end {
        for event in cell.poll_events().unwrap() {
            let Event::Exited { start, status, .. } = event;
            if start == Some(started.start) {
                return status;
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("{started:?} did not end");
}

/// Waits at most 10 s for something to become true.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
