//! eventfd: a counter. Any instance of the same type is as good as another once it counts the same.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::event::EventfdFlags;
use serde::{Deserialize, Serialize};

use super::error::{Error, bad_state, making};
use super::live::LiveDescription;

/// An eventfd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    pub count: u64,
    /// `EFD_SEMAPHORE`: a read takes one.
    pub semaphore: bool,
}

/// A semaphore is counted down one read at a time; beyond this many a new one is cheaper.
const STEPS_MAX: u64 = 1000;

pub(super) fn capture(live: &LiveDescription) -> Result<State, Error> {
    // The count is hexadecimal, padded with blanks (fs/eventfd.c, eventfd_show_fdinfo).
    let count = live
        .field("eventfd-count")
        .and_then(|text| u64::from_str_radix(text, 16).ok());
    let count = count.ok_or_else(|| bad_state("an eventfd", "its counter cannot be read from fdinfo"))?;
    // Kernels before 6.5 do not tell; the type is then taken for the plain one.
    Ok(State {
        count,
        semaphore: live.field("eventfd-semaphore") == Some("1"),
    })
}

pub(super) fn same(wanted: &State, live: &LiveDescription) -> bool {
    capture(live).is_ok_and(|now| {
        let steps = now.count.saturating_sub(wanted.count);
        now.semaphore == wanted.semaphore && (!now.semaphore || steps <= STEPS_MAX)
    })
}

pub(super) fn restore(wanted: &State, fd: BorrowedFd<'_>, now: &State) -> Result<(), Error> {
    let mut count = now.count;
    let mut value = [0; 8];
    // A read of a counter above zero never waits.
    while count > wanted.count {
        rustix::io::read(fd, &mut value).map_err(making("an eventfd"))?;
        count = if wanted.semaphore { count - 1 } else { 0 };
    }
    add(fd, wanted.count - count)
}

pub(super) fn make(wanted: &State) -> Result<OwnedFd, Error> {
    let mut flags = EventfdFlags::CLOEXEC;
    if wanted.semaphore {
        flags |= EventfdFlags::SEMAPHORE;
    }
    use std::os::fd::AsFd;
    let fd = rustix::event::eventfd(0, flags).map_err(making("an eventfd"))?;
    add(fd.as_fd(), wanted.count)?;
    Ok(fd)
}

fn add(fd: BorrowedFd<'_>, count: u64) -> Result<(), Error> {
    if count > 0 {
        rustix::io::write(fd, &count.to_ne_bytes()).map_err(making("an eventfd"))?;
    }
    Ok(())
}
