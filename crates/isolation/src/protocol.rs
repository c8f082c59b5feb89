//! The messages. Both ends are the same program, so there are no versions.

use serde::{Deserialize, Serialize};

use crate::error::Failure;

/// Owner to spawner.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum SpawnerRequest {
    /// Descriptors: init's request socket, init's event socket, the cell's cgroup, the cgroup `run`.
    Cell {
        uid_base: u32,
        oom_score_adj: Option<i32>,
    },
}

/// Spawner to owner.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum SpawnerReply {
    /// The scaffold stands, the filters are compiled.
    Ready,
    /// Descriptor: pidfd of init.
    Cell {
        pid: i32,
    },
    Failed(Failure),
}

/// Owner to init.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    pub id: u64,
    pub order: Order,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// The identity maps are written: take them on, make the namespaces habitable.
    Boot,
    /// Descriptors: the new root, then one per bind (only with `first`).
    Root {
        hostname: Option<String>,
        binds: Option<Vec<String>>,
    },
    /// Let go of the root that the last `Root` replaced.
    DropOldRoot,
    /// Descriptors: three of them unless a pty is asked for.
    Exec(Box<Command>),
    /// A stopped child without descriptors.
    Skeleton {
        pid: Option<i32>,
        confine: bool,
    },
    SetLastPid(i32),
    /// Kill every process of the PID namespace.
    KillAll,
    /// How many children are left, apart from held zombies.
    CountChildren,
    Signal {
        pid: i32,
        group: bool,
        signal: i32,
    },
    /// Leave (or no longer leave) this zombie alone.
    HoldZombie {
        pid: i32,
        hold: bool,
    },
    /// Give future children a time namespace of their own.
    OwnTime,
    Hostname(String),
    Ping,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Command {
    pub argv: Vec<Vec<u8>>,
    pub env: Vec<(Vec<u8>, Vec<u8>)>,
    pub cwd: Vec<u8>,
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub umask: u32,
    pub rlimits: Vec<(u32, Option<u64>, Option<u64>)>,
    /// Rows and columns.
    pub pty: Option<(u16, u16)>,
}

/// Init to owner.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Reply {
    pub id: u64,
    pub answer: Answer,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    Done,
    Children(usize),
    /// Descriptors: pidfd, then the pty's master if one was asked for.
    Started {
        pid: i32,
        start: u64,
    },
    /// The program could not be started: in which step, and the error.
    NotStarted {
        step: Step,
        errno: i32,
    },
    Failed(Failure),
}

/// The steps of a command between clone and exec.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Step {
    Fork,
    Session,
    Stdio,
    Rlimits,
    OomScore,
    Capabilities,
    Credentials,
    WorkingDirectory,
    Seccomp,
    Descriptors,
    Program,
    /// It ended before it could say what went wrong: killed while starting.
    Vanished,
}

/// A child of init has ended.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct ExitNotice {
    /// Number of the start; 0 for a process that was not started by the owner.
    pub start: u64,
    pub pid: i32,
    /// Exit code, or the signal.
    pub code: i32,
    pub signalled: bool,
    pub core: bool,
}
