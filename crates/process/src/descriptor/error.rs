//! What can go wrong with descriptors.

use rustix::io::Errno;

use crate::error::TraceError;
use crate::ids::InsidePid;

/// Why descriptor tables could not be captured or restored. Processes are named by their number inside the
/// sandbox.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A fact about a process could not be read.
    #[error("process {process}: cannot read {what}: {source}")]
    Read {
        process: InsidePid,
        what: &'static str,
        source: std::io::Error,
    },
    /// Something in the tables cannot be carried; nothing was changed.
    #[error("{}", list(.0))]
    Refused(Vec<Refusal>),
    /// An object could not be made as it was.
    #[error("cannot restore {what}: {source}")]
    Make { what: String, source: std::io::Error },
    /// A process did not do what it was asked to.
    #[error("process {process}: cannot {what}: {source}")]
    Act {
        process: InsidePid,
        what: &'static str,
        source: std::io::Error,
    },
    /// An injected call could not be run.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// The wanted tables name a process that is not there.
    #[error("process {process} is part of the wanted state but not of the sandbox; re-create it first")]
    Missing { process: InsidePid },
}

/// Something that cannot be carried: which process, which descriptor, why, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("process {process}, descriptor {fd} ({what}): {why}; {remedy}")]
pub struct Refusal {
    /// Its number inside the sandbox.
    pub process: InsidePid,
    /// The descriptor; -1 when it is about the process as a whole.
    pub fd: i32,
    /// What the descriptor leads to.
    pub what: String,
    pub why: String,
    pub remedy: String,
}

fn list(refusals: &[Refusal]) -> String {
    refusals
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("\n")
}

pub(super) fn reading(process: InsidePid, what: &'static str, source: Errno) -> Error {
    Error::Read {
        process,
        what,
        source: source.into(),
    }
}

pub(super) fn making<E: Into<std::io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Error {
    let what = what.into();
    move |source| Error::Make {
        what,
        source: source.into(),
    }
}

pub(super) fn bad_state(what: impl Into<String>, why: &'static str) -> Error {
    Error::Make {
        what: what.into(),
        source: std::io::Error::other(why),
    }
}
