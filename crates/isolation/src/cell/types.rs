//! What cells are told, and what they tell.

use std::ffi::OsString;
use std::os::fd::OwnedFd;

use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::error::{Context, Result};

/// A mount to appear inside the root, and in every root that follows it.
#[derive(Debug)]
pub struct Bind {
    /// A detached mount (from `open_tree` with `OPEN_TREE_CLONE`, or `fsmount`), with the wanted flags (read-only,
    /// identity map) already set on it. See [`Bind::of_path`].
    pub mount: OwnedFd,
    /// Absolute path inside; made if it is not there.
    pub target: String,
}

impl Bind {
    /// Clones the mount of a path of the owner's mount namespace, without the mounts below it. Identities are not
    /// mapped: files of users outside the cell's range belong to nobody inside.
    pub fn of_path(source: &std::path::Path, target: impl Into<String>) -> Result<Self> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let mount =
            open_tree(CWD, source, flags).context(format!("clone the mount of {}", source.display()))?;
        Ok(Self {
            mount,
            target: target.into(),
        })
    }
}

/// What goes with the first root.
#[derive(Debug, Default)]
pub struct RootSpec {
    /// Name of the machine, as programs see it.
    pub hostname: Option<String>,
    /// Mounts inside the root.
    pub binds: Vec<Bind>,
}

/// Where a command's standard descriptors lead.
#[derive(Debug)]
pub enum Stdio {
    /// Input, output, error.
    Fds([OwnedFd; 3]),
    /// A terminal of the cell, of this size.
    Pty {
        /// Lines.
        rows: u16,
        /// Characters per line.
        cols: u16,
    },
}

/// A command.
#[derive(Debug)]
pub struct ExecSpec {
    /// The program (looked up in `PATH` of `env` if it has no slash) and its arguments.
    pub argv: Vec<OsString>,
    /// The whole environment.
    pub env: Vec<(OsString, OsString)>,
    /// Working directory, absolute.
    pub cwd: OsString,
    /// User and group inside, see [`crate::users::resolve`].
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// File mode creation mask.
    pub umask: u32,
    /// `RLIMIT_*` number, soft and hard limit (`None`: unlimited). Raising a hard limit needs CAP_SYS_RESOURCE.
    pub rlimits: Vec<(u32, Option<u64>, Option<u64>)>,
    /// Standard descriptors.
    pub stdio: Stdio,
}

/// A process to be filled by a tracer.
#[derive(Debug, Clone, Default)]
pub struct SkeletonSpec {
    /// The PID it must have inside; any if `None`.
    pub pid_inside: Option<i32>,
    /// Whether it has the bounding set, `no_new_privs` and seccomp filters of a command. It keeps the cell's full
    /// effective capabilities either way, to be lowered last.
    pub confine: bool,
}

/// A process that was started.
#[derive(Debug)]
pub struct Started {
    /// PID in the owner's PID namespace.
    pub pid: i32,
    /// PID inside the cell.
    pub pid_inside: i32,
    /// Number of the start, unique in the cell's life; PIDs are not.
    pub start: u64,
    /// The process.
    pub pidfd: OwnedFd,
    /// The other end of its terminal.
    pub pty_master: Option<OwnedFd>,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// It returned this code.
    Code(i32),
    /// A signal killed it.
    Signal {
        /// The signal's number.
        signal: i32,
        /// Whether a core was dumped.
        core: bool,
    },
}

/// News from a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A child of init has ended.
    Exited {
        /// PID inside.
        pid_inside: i32,
        /// Number of its start; `None` for an orphan that init inherited.
        start: Option<u64>,
        /// How.
        status: ExitStatus,
    },
}

/// Whom a signal goes to, by PID inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KillTarget {
    /// One process.
    Process(i32),
    /// A process group.
    Group(i32),
}
