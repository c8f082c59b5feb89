//! signalfd: a set of signals. What is pending belongs to the process, not to the descriptor.

use std::os::fd::{BorrowedFd, OwnedFd};

use serde::{Deserialize, Serialize};

use super::error::{Error, bad_state, making};
use super::live::LiveDescription;

/// A signalfd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Bit n-1 is signal n.
    pub mask: u64,
}

pub(super) fn capture(live: &LiveDescription) -> Result<State, Error> {
    let mask = live
        .field("sigmask")
        .and_then(|text| u64::from_str_radix(text, 16).ok());
    Ok(State {
        mask: mask.ok_or_else(|| bad_state("a signalfd", "its mask cannot be read from fdinfo"))?,
    })
}

pub(super) fn restore(wanted: &State, fd: BorrowedFd<'_>) -> Result<(), Error> {
    deltabox_sys::fd::set_signalfd_mask(fd, wanted.mask).map_err(making("the mask of a signalfd"))
}

pub(super) fn make(wanted: &State) -> Result<OwnedFd, Error> {
    deltabox_sys::fd::signalfd(wanted.mask).map_err(making("a signalfd"))
}
