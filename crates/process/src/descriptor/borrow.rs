//! A file put at a descriptor of a process for a moment.

use std::collections::BTreeSet;
use std::os::fd::AsFd;

use super::edit::{self, Destination, Edit, Install};
use super::epoll::Target;
use super::error::Error;
use super::restore::Restore;
use super::tables::Table;
use crate::stop::Process;

/// Runs `work` while `target.fd` of the process leads to `target.description`, and puts back what was there. The
/// process is stopped, so nobody sees it.
pub(super) fn with_object_at(
    restore: &Restore<'_>,
    process: &mut Process,
    table: &Table,
    target: &Target,
    work: impl FnOnce(&mut Process) -> Result<(), Error>,
) -> Result<(), Error> {
    let live = restore.live.process(table.process).ok_or(Error::Missing {
        process: table.process,
    })?;
    let open: BTreeSet<i32> = table.slots.iter().map(|s| s.fd).collect();
    let edit = |open: &BTreeSet<i32>, close: bool| Edit {
        open: open.clone(),
        wanted: open.iter().copied().chain([target.fd]).collect(),
        close: if close { vec![target.fd] } else { Vec::new() },
        ..Edit::default()
    };
    let before = table.slots.iter().find(|s| s.fd == target.fd);
    let mut put = edit(&open, before.is_some());
    put.install.push(Install {
        object: restore.object(target.description as usize)?,
        place: Destination::Slots(vec![(target.fd, true)]),
    });
    edit::apply(process, live.pidfd.as_fd(), put)?;
    let worked = work(process);
    let mut during = open;
    during.insert(target.fd);
    let mut back = edit(&during, true);
    if let Some(slot) = before {
        back.install.push(Install {
            object: restore.object(slot.description as usize)?,
            place: Destination::Slots(vec![(slot.fd, slot.close_on_exec)]),
        });
    }
    edit::apply(process, live.pidfd.as_fd(), back)?;
    worked
}
