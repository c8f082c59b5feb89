//! Names for things that are all plain numbers to the kernel and must not be mixed up.

use std::fmt;

use rustix::process::Pid;
use serde::{Deserialize, Serialize};

/// A process or thread as the engine sees it, in the engine's own PID namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HostPid(Pid);

impl Ord for HostPid {
    fn cmp(&self, other: &HostPid) -> std::cmp::Ordering {
        self.raw().cmp(&other.raw())
    }
}

impl PartialOrd for HostPid {
    fn partial_cmp(&self, other: &HostPid) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl HostPid {
    /// `None` unless `raw` is positive.
    #[must_use]
    pub fn new(raw: i32) -> Option<HostPid> {
        if raw > 0 {
            Pid::from_raw(raw).map(HostPid)
        } else {
            None
        }
    }

    /// The number.
    #[must_use]
    pub fn raw(self) -> i32 {
        self.0.as_raw_nonzero().get()
    }

    /// For system calls.
    #[must_use]
    pub fn pid(self) -> Pid {
        self.0
    }
}

impl From<Pid> for HostPid {
    fn from(pid: Pid) -> HostPid {
        HostPid(pid)
    }
}

impl fmt::Display for HostPid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.raw())
    }
}

/// The user and group id, as the engine sees it, of what is 0 in a sandbox; the others follow. Images count from it, so
/// that they fit a sandbox with other ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FirstId(pub u32);

impl FirstId {
    /// As an image has it.
    #[must_use]
    pub fn inside(self, id: u32) -> u32 {
        id.wrapping_sub(self.0)
    }

    /// As the engine sees it.
    #[must_use]
    pub fn outside(self, id: u32) -> u32 {
        id.wrapping_add(self.0)
    }
}

/// A process, thread, process group or session as the programs of the sandbox see it, in the innermost PID namespace.
/// 0 stands for something outside of the sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct InsidePid(pub i32);

impl fmt::Display for InsidePid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// An address in the memory of a traced process. Never dereferenced here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Default)]
pub struct Addr(pub u64);

impl Addr {
    /// The address `bytes` further on.
    #[must_use]
    pub fn plus(self, bytes: u64) -> Addr {
        Addr(self.0.wrapping_add(bytes))
    }

    /// 0, the null pointer.
    #[must_use]
    pub fn is_null(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}
