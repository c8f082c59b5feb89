//! FIFOs: a pipe inside, reached by a path.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::{Deserialize, Serialize};

use super::error::Error;
use super::live::{Live, LiveDescription};
use super::place::Place;

/// An end of a FIFO.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    pub place: Place,
    /// Position in [`Tables::pipes`](super::tables::Tables::pipes).
    pub pipe: u32,
}

pub(super) fn same(wanted: &State, live: &Live, description: &LiveDescription) -> bool {
    wanted
        .place
        .fits(live, description.mount, description.object, description.links)
}

/// The FIFO opened both ways, so that its pipe exists while content is put in and ends are opened.
pub(super) fn open(wanted: &State, root: BorrowedFd<'_>) -> Result<OwnedFd, Error> {
    match wanted.place {
        Place::Deleted { .. } => {
            // Nothing can reach it by name; any pipe does the same.
            let (read, _write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
                .map_err(super::error::making(format!("the FIFO {}", wanted.place.show())))?;
            super::pipe::open_end(read.as_fd(), libc::O_RDWR as u32)
        }
        _ => wanted.place.open(root, (libc::O_RDWR | libc::O_NONBLOCK) as u32),
    }
}
