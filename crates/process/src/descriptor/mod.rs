//! The descriptor tables of all processes of a sandbox: surveyed, captured, and restored in place.
//!
//! Shared open file descriptions (by `dup`, `fork`, or passing) are found with `kcmp` and stay shared. Objects are
//! made by our side and installed into the processes over an injected socket; what already leads to the wanted
//! object is kept and only adjusted. One module per kind of object.
//!
//! The order at a checkpoint is [`survey`], [`capture`], drop of the [`Live`] tables, resume: while they exist, ends
//! of pipes and sockets may be held open here, which the programs must not see.

mod borrow;
mod capture;
pub mod chardev;
mod class;
mod contents;
mod diag;
pub mod directory;
mod edge;
mod edit;
pub mod epoll;
mod error;
pub mod eventfd;
pub mod external;
mod fdinfo;
pub mod fifo;
pub mod inotify;
mod late;
mod live;
pub mod lock;
mod matching;
pub mod memfd;
pub mod mqueue;
pub mod multicast;
pub mod netlink;
pub mod options;
pub mod pidfd;
pub mod pipe;
mod place;
pub mod pty;
pub mod pty_queue;
pub mod regular;
mod restore;
mod room;
mod search;
mod session;
pub mod signalfd;
mod socket;
mod tables;
pub mod tcp;
mod tcp_backlog;
mod tcp_make;
pub(crate) mod terminals;
pub mod timerfd;
pub mod udp;
pub mod unix;
mod unix_backlog;
mod unix_fit;
mod unix_make;
mod unix_name;
pub mod unix_queue;
mod unix_renew;

use std::os::fd::BorrowedFd;

use crate::ids::FirstId;
use crate::stop::Process;

pub use contents::{ContentDirectory, Contents};
pub use error::{Error, Refusal};
pub use external::{ExternalId, Externals};
pub use live::{Live, Member};
pub use place::Place;
pub(crate) use restore::make_mapped;
pub use restore::{Environment, Report, restore};
pub(crate) use session::terminal;
pub use tables::{ContentId, Description, Kind, ObjectKey, Owner, Slot, Table, Tables};
pub use terminals::Terminals;

/// Reads all descriptor tables and checks that everything in them can be carried. Nothing is changed.
///
/// `root` is the sandbox's root directory as it is now.
///
/// # Errors
/// [`Error::Refused`] names everything that cannot be carried: process, descriptor, reason and remedy.
pub fn survey(
    members: &[Member],
    root: BorrowedFd<'_>,
    first_id: FirstId,
    externals: &Externals,
) -> Result<Live, Error> {
    let live = Live::read(members, root, first_id)?;
    let refusals = capture::refusals(&live, externals)?;
    if refusals.is_empty() {
        Ok(live)
    } else {
        Err(Error::Refused(refusals))
    }
}

/// Captures what [`survey`] found. `previous` are the tables of the checkpoint before: contents that did not change are
/// kept by reference. The programs cannot tell, once [`settle`] has been called, with an error too.
///
/// # Errors
/// When an object cannot be asked for its state.
pub fn capture(
    live: &mut Live,
    externals: &Externals,
    previous: Option<&Tables>,
    contents: &mut dyn Contents,
) -> Result<Tables, Error> {
    capture::capture(live, externals, previous, contents)
}

/// Puts back what could only be captured by taking it out.
///
/// # Errors
/// When a process does not do its part, or an object cannot be made.
pub fn settle(live: &Live, processes: &mut [Process]) -> Result<(), Error> {
    unix_backlog::settle(live, processes)
}
