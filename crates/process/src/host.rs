//! What the engine needs from the sandbox around the processes.

use std::io;
use std::os::fd::BorrowedFd;

use crate::ids::{FirstId, HostPid, InsidePid};

/// The sandbox, as the engine sees it. Called from the engine's own thread only.
pub trait Host {
    /// Stops all tasks of the sandbox at one instant (`cgroup.freeze`), init excepted.
    fn freeze(&mut self) -> io::Result<()>;
    /// Undoes [`Host::freeze`]; tasks held by ptrace stay stopped.
    fn thaw(&mut self) -> io::Result<()>;
    /// All processes of the sandbox, init excepted, by their host pid. Zombies may be missing.
    fn pids(&mut self) -> io::Result<Vec<HostPid>>;
    /// PID 1 of the sandbox.
    fn init_pid(&self) -> HostPid;
    /// Where the sandbox's user and group ids begin.
    fn first_id(&self) -> FirstId;
    /// Makes `pid - 1` the last pid given out in the sandbox's PID namespace, so that the next process or thread gets
    /// `pid`. Called only while everything in the sandbox is stopped.
    fn set_next_pid(&mut self, pid: InsidePid) -> io::Result<()>;
    /// Makes init clone a child with the given pid, in the processes' cgroup. It must not run on before it is traced:
    /// it waits (`raise(SIGSTOP)` or a blocking read) and holds nothing but what the programs of the sandbox hold.
    fn skeleton(&mut self, pid: InsidePid) -> io::Result<HostPid>;
    /// The sandbox's present root directory (`O_PATH`).
    fn root(&self) -> BorrowedFd<'_>;
    /// The sandbox's network namespace.
    fn net_namespace(&self) -> BorrowedFd<'_>;
}
