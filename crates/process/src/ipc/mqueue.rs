//! POSIX message queues. The kernel shows their messages only to those who take them: a queue is emptied and filled
//! again, while nobody runs who could see it. (Whoever watches it edge-triggered may be woken once in vain.)

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use deltabox_sys::mqueue::{self, Size};
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid, fchmod, fchown, fstat, openat, unlinkat};
use serde::{Deserialize, Serialize};

use super::namespace::{Namespace, as_user};
use crate::ids::FirstId;

/// One queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Queue {
    /// Without a slash.
    pub name: Vec<u8>,
    pub owner: (u32, u32),
    pub mode: u32,
    /// How many messages it may hold, and how many bytes each may have.
    pub size: (i64, i64),
    /// Priority and text, the first to be received first.
    pub messages: Vec<(u32, Vec<u8>)>,
}

/// Opened for both directions, never waiting.
const FLAGS: OFlags = OFlags::RDWR.union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

pub(super) fn read(namespace: &Namespace, first: FirstId) -> io::Result<Vec<Queue>> {
    let mut names = namespace.queue_names()?;
    names.sort();
    let one = |name: Vec<u8>| {
        let queue = openat(namespace.queues()?, name.as_slice(), FLAGS, Mode::empty())?;
        Queue::read(name, queue.as_fd(), first)
    };
    names.into_iter().map(one).collect()
}

pub(super) fn restore(namespace: &Namespace, first: FirstId, wanted: &[Queue]) -> io::Result<()> {
    let names = namespace.queue_names()?;
    for name in &names {
        let directory = namespace.queues()?;
        let queue = wanted.iter().find(|queue| queue.name == *name);
        let live = openat(directory, name.as_slice(), FLAGS, Mode::empty())?;
        match queue {
            Some(queue) if queue.fits(live.as_fd())? => queue.restore(live.as_fd(), first)?,
            _ => unlinkat(directory, name.as_slice(), AtFlags::empty())?,
        }
    }
    let there = namespace.queue_names()?;
    for queue in wanted.iter().filter(|queue| !there.contains(&queue.name)) {
        queue.make(namespace, first)?;
    }
    Ok(())
}

/// Whether a process is to be told of the next message (`mq_notify`).
pub(crate) fn is_notified(queue: BorrowedFd<'_>) -> io::Result<bool> {
    let mut room = [0; 128];
    let got = rustix::io::pread(queue, &mut room, 0)?;
    let text = String::from_utf8_lossy(&room[..got]);
    let pid = text
        .split_whitespace()
        .find_map(|word| word.strip_prefix("NOTIFY_PID:"));
    pid.map(|pid| pid != "0")
        .ok_or_else(|| io::Error::other("the queue does not say whom it notifies"))
}

fn drain(queue: BorrowedFd<'_>) -> io::Result<Vec<(u32, Vec<u8>)>> {
    let (size, count) = mqueue::size(queue)?;
    let room = usize::try_from(size.bytes).unwrap_or(0);
    (0..count).map(|_| mqueue::receive(queue, room)).collect()
}

fn fill(queue: BorrowedFd<'_>, messages: &[(u32, Vec<u8>)]) -> io::Result<()> {
    let mut messages = messages.iter();
    messages.try_for_each(|(priority, text)| mqueue::send(queue, *priority, text))
}

impl Queue {
    /// Reads a queue through a descriptor that never waits.
    pub(crate) fn read(name: Vec<u8>, queue: BorrowedFd<'_>, first: FirstId) -> io::Result<Queue> {
        let stat = fstat(queue)?;
        let (size, _) = mqueue::size(queue)?;
        let messages = drain(queue)?;
        fill(queue, &messages)?;
        Ok(Queue {
            name,
            owner: (first.inside(stat.st_uid), first.inside(stat.st_gid)),
            mode: stat.st_mode & 0o7777,
            size: (size.messages, size.bytes),
            messages,
        })
    }

    /// Whether a live queue can be filled with what is in this one. Nobody may wait to be told of it.
    pub(crate) fn fits(&self, queue: BorrowedFd<'_>) -> io::Result<bool> {
        let (size, _) = mqueue::size(queue)?;
        Ok((size.messages, size.bytes) == self.size && !is_notified(queue)?)
    }

    /// Makes a queue that fits hold what this one did.
    pub(crate) fn restore(&self, queue: BorrowedFd<'_>, first: FirstId) -> io::Result<()> {
        drain(queue)?;
        fill(queue, &self.messages)?;
        let (user, group) = self.owner;
        let stat = fstat(queue)?;
        if (first.inside(stat.st_uid), first.inside(stat.st_gid)) != self.owner {
            let (user, group) = (first.outside(user), first.outside(group));
            fchown(queue, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)))?;
        }
        if stat.st_mode & 0o7777 != self.mode {
            fchmod(queue, Mode::from_raw_mode(self.mode))?;
        }
        Ok(())
    }

    /// Makes it anew. The descriptor is open for both directions and never waits.
    pub(crate) fn make(&self, namespace: &Namespace, first: FirstId) -> io::Result<OwnedFd> {
        let name = CString::new(self.name.as_slice())?;
        let (messages, bytes) = self.size;
        let size = Size { messages, bytes };
        let queue = namespace.enter(|| as_user(first, self.owner, || mqueue::make(&name, 0o600, size)))?;
        self.restore(queue.as_fd(), first)?;
        Ok(queue)
    }
}
