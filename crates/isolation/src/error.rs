//! What can go wrong with cells, as the owner sees it.

use std::io;

use serde::{Deserialize, Serialize};

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Errors of cells, spawner and cgroups.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call of the owner failed.
    #[error("{what}: {source}")]
    System {
        /// What was being done.
        what: String,
        /// The error of the kernel.
        source: io::Error,
    },
    /// The spawner or an init reported a failed step.
    #[error("{0}")]
    Inside(#[from] Failure),
    /// The other side closed its socket.
    #[error("the {who} has ended; create the sandbox again")]
    Gone {
        /// Which process.
        who: &'static str,
    },
    /// The other side did not answer in time.
    #[error("the {who} did not answer within {seconds} s while asked to {what}")]
    Silent {
        /// Which process.
        who: &'static str,
        /// The bound.
        seconds: u64,
        /// The request.
        what: &'static str,
    },
    /// The program to run does not exist.
    #[error("no such program in the sandbox: {program}")]
    ProgramNotFound {
        /// As asked for.
        program: String,
    },
    /// The program may not be run.
    #[error("cannot run {program}: {source}; check that it is an executable file for this machine and user")]
    ProgramNotRunnable {
        /// As asked for.
        program: String,
        /// The error of `execve`.
        source: io::Error,
    },
    /// The working directory cannot be entered.
    #[error("cannot enter the working directory {cwd} in the sandbox: {source}")]
    WorkingDirectory {
        /// As asked for.
        cwd: String,
        /// The error of `chdir`.
        source: io::Error,
    },
    /// No further process fits into the limits.
    #[error("the sandbox has reached its limit on processes; end some or raise the limit")]
    ProcessLimit,
    /// The wanted PID is in use.
    #[error("process id {pid} is taken in the sandbox")]
    PidTaken {
        /// The PID inside.
        pid: i32,
    },
    /// A request that cannot be right.
    #[error("{0}")]
    Invalid(String),
    /// A limit was asked for that nothing here can hold.
    #[error("cannot limit {what}: {why}")]
    NoController {
        /// memory, pids or cpu.
        what: &'static str,
        /// Why, and what would help.
        why: String,
    },
    /// Something survived its end.
    #[error("{what} is still there after {seconds} s")]
    Left {
        /// What was to vanish.
        what: String,
        /// The bound.
        seconds: u64,
    },
    /// The seccomp profile cannot be used.
    #[error("seccomp profile: {0}")]
    Profile(String),
    /// No such user or group.
    #[error("{0}")]
    User(#[from] crate::users::UserError),
}

/// A failed step in another process: what it did and the kernel's error number.
#[derive(Debug, Clone, Serialize, Deserialize, thiserror::Error)]
#[error("{what}: {}", io::Error::from_raw_os_error(*errno))]
pub struct Failure {
    /// What was being done.
    pub what: String,
    /// Error number of the kernel.
    pub errno: i32,
}

/// Adds what was being done to an error of the kernel.
pub(crate) trait Context<T> {
    fn context(self, what: impl Into<String>) -> Result<T>;
    fn inside(self, what: impl Into<String>) -> Result<T, Failure>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl Into<String>) -> Result<T> {
        self.map_err(|e| Error::System {
            what: what.into(),
            source: e.into(),
        })
    }

    fn inside(self, what: impl Into<String>) -> Result<T, Failure> {
        self.map_err(|e| Failure {
            what: what.into(),
            errno: e.into().raw_os_error().unwrap_or(libc::EIO),
        })
    }
}
