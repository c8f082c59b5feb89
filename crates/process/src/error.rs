//! What can go wrong with a traced thread.

use std::io;

use rustix::io::Errno;
use thiserror::Error;

use crate::ids::HostPid;

/// Failures of ptrace and of injected system calls.
#[derive(Debug, Error)]
pub enum TraceError {
    /// The thread does not exist any more.
    #[error("thread {tid} is gone")]
    Gone { tid: HostPid },
    /// The thread ended while it was held.
    #[error("thread {tid} ended while it was stopped (wait status {status:#x})")]
    Died { tid: HostPid, status: i32 },
    /// The thread neither stopped nor finished a call in the time allowed.
    #[error("thread {tid} did not stop in time: it may be in an uninterruptible wait; try again later")]
    Stuck { tid: HostPid },
    /// Injected code was not run as expected.
    #[error("injected code in thread {tid} was stopped by signal {signal}")]
    Crashed { tid: HostPid, signal: i32 },
    /// A ptrace request failed.
    #[error("cannot {what} thread {tid}: {source}")]
    Request {
        tid: HostPid,
        what: &'static str,
        source: io::Error,
    },
    /// The memory of the process could not be read or written.
    #[error("cannot {what} {length} bytes at {address} of process {pid}: {source}")]
    Memory {
        pid: HostPid,
        what: &'static str,
        address: crate::ids::Addr,
        length: usize,
        source: io::Error,
    },
    /// An injected system call that has to work did not.
    #[error("system call {name} in process {pid} failed: {errno}")]
    Call {
        pid: HostPid,
        name: &'static str,
        errno: Errno,
    },
    /// A file of /proc could not be read or understood.
    #[error("cannot read /proc/{pid}/{file}: {source}")]
    Proc {
        pid: HostPid,
        file: String,
        source: io::Error,
    },
    /// Something was not done to the sandbox's IPC objects.
    #[error("cannot {what}: {source}")]
    Ipc { what: String, source: io::Error },
    /// The process has no executable `syscall` instruction.
    #[error("process {pid} has no system call instruction to run injected calls with")]
    NoInstruction { pid: HostPid },
}

impl TraceError {
    /// Whether the error says that the thread or process does not exist any more.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        matches!(self, TraceError::Gone { .. } | TraceError::Died { .. })
    }
}
