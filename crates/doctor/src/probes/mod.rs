//! The probes. Each uses one feature in this process, which exists for nothing else.

pub(crate) mod cgroups;
pub(crate) mod files;
pub(crate) mod memory;
pub(crate) mod namespaces;
pub(crate) mod processes;
pub(crate) mod store;

use std::fmt::Display;
use std::io;

use crate::report::Outcome;

/// A step that failed: what was tried, and the error.
pub(crate) type Step<T = ()> = Result<T, String>;

pub(crate) trait Doing<T> {
    /// Says what was being done when it failed.
    fn doing(self, what: &str) -> Step<T>;
}

impl<T, E: Display> Doing<T> for Result<T, E> {
    fn doing(self, what: &str) -> Step<T> {
        self.map_err(|error| format!("{what}: {error}"))
    }
}

/// The outcome of steps of which all must succeed.
pub(crate) fn all(steps: Step<String>) -> Outcome {
    match steps {
        Ok(detail) => Outcome::works(detail),
        Err(why) => Outcome::missing(why),
    }
}

/// A statement that must hold.
pub(crate) fn ensure(holds: bool, otherwise: &str) -> Step {
    if holds { Ok(()) } else { Err(otherwise.to_owned()) }
}

/// A mount namespace of this process's own, from which nothing spreads.
pub(crate) fn private_mounts() -> Step {
    use rustix::mount::{MountPropagationFlags, mount_change};
    deltabox_sys::clone::unshare_namespaces(rustix::thread::UnshareFlags::NEWNS)
        .doing("unshare the mount namespace")?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .doing("make mounts private")
}

pub(crate) fn failed(what: &str) -> io::Error {
    io::Error::other(what.to_owned())
}
