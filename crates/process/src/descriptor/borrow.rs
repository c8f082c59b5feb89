//! A file put into a process for a moment. The process is stopped, so nobody sees it.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::edit::{self, Destination, Edit, Install};
use super::error::{Error, reading};
use crate::inject::{Arg, Batch};
use crate::stop::Process;

/// The descriptors a process has open at this moment.
pub(super) fn open_now(process: &Process) -> Result<BTreeSet<i32>, Error> {
    let failed = |source| Error::Read {
        process: process.inside(),
        what: "its descriptors",
        source,
    };
    let entries = std::fs::read_dir(format!("/proc/{}/fd", process.pid().raw())).map_err(failed)?;
    Ok(entries
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse().ok())
        .collect())
}

fn handle(process: &Process) -> Result<OwnedFd, Error> {
    pidfd_open(process.pid().pid(), PidfdFlags::empty())
        .map_err(|e| reading(process.inside(), "a handle of the process", e))
}

/// Runs `work` while `object` is at descriptor `at` of the process (or at any that is free and harmless), and puts
/// back what was there.
pub(super) fn with_object<R>(
    process: &mut Process,
    object: BorrowedFd<'_>,
    at: Option<(i32, Option<(BorrowedFd<'_>, bool)>)>,
    work: impl FnOnce(&mut Process, i32) -> Result<R, Error>,
) -> Result<R, Error> {
    let open = open_now(process)?;
    let pidfd = handle(process)?;
    let (fd, before) = at.unwrap_or_else(|| ((0..).find(|fd| !open.contains(fd)).unwrap_or(0), None));
    let edit = |open: &BTreeSet<i32>, close: bool| Edit {
        open: open.clone(),
        wanted: open.iter().copied().chain([fd]).collect(),
        close: if close { vec![fd] } else { Vec::new() },
        ..Edit::default()
    };
    let install = |object, close_on_exec| Install {
        object,
        place: Destination::Slots(vec![(fd, close_on_exec)]),
    };
    let mut put = edit(&open, open.contains(&fd));
    put.install.push(install(object, true));
    edit::apply(process, pidfd.as_fd(), put)?;
    let worked = work(process, fd);
    let mut during = open;
    during.insert(fd);
    let mut back = edit(&during, true);
    if let Some((object, close_on_exec)) = before {
        back.install.push(install(object, close_on_exec));
    }
    edit::apply(process, pidfd.as_fd(), back)?;
    worked
}

/// Takes a descriptor out of a process: ours then, and closed there.
pub(super) fn take(process: &mut Process, fd: i32) -> Result<OwnedFd, Error> {
    let pidfd = handle(process)?;
    let pulled = pidfd_getfd(&pidfd, fd, PidfdGetfdFlags::empty())
        .map_err(|e| reading(process.inside(), "a duplicate of a descriptor", e));
    let mut batch = Batch::new();
    batch.call(libc::SYS_close, &[Arg::from(fd)]);
    process.run(&mut batch)?;
    pulled
}

/// An injected call that has to work.
pub(super) fn call(
    process: &mut Process,
    what: &'static str,
    build: impl FnOnce(&mut Batch) -> crate::inject::CallId,
) -> Result<u64, Error> {
    let mut batch = Batch::new();
    let id = build(&mut batch);
    process.run(&mut batch)?;
    batch.result(id).map_err(|source: Errno| Error::Act {
        process: process.inside(),
        what,
        source: source.into(),
    })
}
