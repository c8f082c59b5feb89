//! POSIX message queues. Those with a name belong to the sandbox (`ipc`); what is here leads to them by that name.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, openat, unlinkat};
use serde::{Deserialize, Serialize};

use super::error::{Error, bad_state, making};
use super::live::Live;
use super::place::reopen;
use super::restore::Environment;
use crate::ipc::mqueue::{Queue, is_notified};

/// A message queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Without a slash.
    pub name: Vec<u8>,
    /// Of a queue whose name was removed: what it was.
    pub nameless: Option<Queue>,
}

impl State {
    fn show(&self) -> String {
        format!("the message queue {}", String::from_utf8_lossy(&self.name))
    }
}

/// For both directions, never waiting.
const FLAGS: u32 = (libc::O_RDWR | libc::O_NONBLOCK) as u32;

fn open(live: &Live, position: usize) -> Result<OwnedFd, Error> {
    reopen(live.pull(position)?, FLAGS).map_err(making("a message queue"))
}

pub(super) fn survey(live: &Live, position: usize) -> Result<Option<(&'static str, &'static str)>, Error> {
    let queue = open(live, position)?;
    let notified = is_notified(queue.as_fd()).map_err(making("a message queue"))?;
    Ok(notified.then_some((
        "somebody waits to be told of its next message (mq_notify), and what he is told cannot be read",
        "wait with mq_receive or poll instead",
    )))
}

pub(super) fn capture(live: &Live, position: usize) -> Result<State, Error> {
    let description = &live.descriptions[position];
    let link = description
        .link
        .strip_suffix(b" (deleted)")
        .filter(|_| description.links == 0);
    let link = link.unwrap_or(&description.link);
    let name = link
        .rsplit(|&byte| byte == b'/')
        .next()
        .unwrap_or_default()
        .to_vec();
    let nameless = if description.links == 0 {
        let queue = open(live, position)?;
        let queue = Queue::read(name.clone(), queue.as_fd(), live.first_id);
        Some(queue.map_err(making("a message queue without a name"))?)
    } else {
        None
    };
    Ok(State { name, nameless })
}

pub(super) fn same(wanted: &State, live: &Live, position: usize) -> bool {
    let named = live.descriptions[position].links > 0;
    match &wanted.nameless {
        None => named,
        Some(queue) => {
            let fits = open(live, position).is_ok_and(|open| queue.fits(open.as_fd()).unwrap_or(false));
            !named && fits
        }
    }
}

/// Puts back what a queue without a name held.
pub(super) fn restore(wanted: &State, live: &Live, position: usize) -> Result<(), Error> {
    let Some(queue) = &wanted.nameless else {
        return Ok(());
    };
    let open = open(live, position)?;
    queue
        .restore(open.as_fd(), live.first_id)
        .map_err(making(wanted.show()))
}

pub(super) fn make(wanted: &State, flags: u32, environment: &Environment<'_>) -> Result<OwnedFd, Error> {
    let namespace = environment
        .ipc
        .ok_or_else(|| bad_state(wanted.show(), "the sandbox has no IPC namespace of its own"))?;
    let failed = || making::<std::io::Error>(wanted.show());
    let directory = namespace.queues().map_err(failed())?;
    let Some(queue) = &wanted.nameless else {
        let flags =
            OFlags::from_bits_retain(flags & (libc::O_ACCMODE | libc::O_NONBLOCK) as u32) | OFlags::CLOEXEC;
        let queue = openat(directory, wanted.name.as_slice(), flags, Mode::empty());
        return queue.map_err(making(wanted.show()));
    };
    // Its last name may be another queue's by now.
    let passing = Queue {
        name: format!(".{:x}", rustix::process::getpid().as_raw_nonzero()).into_bytes(),
        ..queue.clone()
    };
    let made = passing.make(namespace, environment.first_id).map_err(failed())?;
    unlinkat(directory, passing.name.as_slice(), AtFlags::empty()).map_err(making(wanted.show()))?;
    reopen(made.as_fd(), flags).map_err(making(wanted.show()))
}
