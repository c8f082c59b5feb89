//! What is kept of the descriptor tables of all processes: small, complete, serialisable.
//!
//! Processes appear by their number inside the sandbox, which a rollback brings back; everything else refers to
//! each other by position. What is too large for memory (the content of files without a name) is kept by the
//! caller's [`Contents`](super::Contents) and appears here as a [`ContentId`].

use serde::{Deserialize, Serialize};

use crate::ids::InsidePid;
use crate::shared::Key;

use super::{
    chardev, directory, epoll, eventfd, external::ExternalId, fifo, inotify, lock, memfd, mqueue, netlink,
    pidfd, pipe, place::Place, pty, regular, signalfd, tcp, timerfd, udp, unix,
};

/// The descriptor tables of a sandbox at one instant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tables {
    /// One per process, ordered by its number inside the sandbox.
    pub processes: Vec<Table>,
    /// Every open file description, also those that are only queued in a socket.
    pub descriptions: Vec<Description>,
    /// Pipes and FIFOs: what several descriptions (their ends) have in common.
    pub pipes: Vec<pipe::State>,
    /// Pseudo terminals, whoever holds their ends.
    pub ptys: Vec<pty::State>,
}

/// The table of one process, and the directories it stands in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// The process, by its number inside the sandbox.
    pub process: InsidePid,
    /// Set when the process has no table of its own but that of another process (`CLONE_FILES`).
    pub shared_with: Option<InsidePid>,
    /// Ordered by descriptor.
    pub slots: Vec<Slot>,
    /// The working directory.
    pub cwd: Place,
    /// The root directory when it is not the sandbox's own.
    pub root: Option<Place>,
    /// POSIX locks: they belong to a process and a file, not to a description.
    pub locks: Vec<lock::Posix>,
}

/// One descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    pub fd: i32,
    pub close_on_exec: bool,
    /// Position in [`Tables::descriptions`].
    pub description: u32,
}

/// One open file description (`struct file`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// Access mode and status flags as in `/proc/pid/fdinfo`, without close-on-exec.
    pub flags: u32,
    /// The offset; 0 where there is none.
    pub pos: i64,
    /// The object it led to, as far as the kernel tells objects apart by inode.
    pub object: ObjectKey,
    /// The object it led to is also mapped: what it is called there, where its content is kept.
    pub mapped: Option<Key>,
    /// Who gets signals, when asynchronous mode is on or the object is a socket with an owner.
    pub owner: Option<Owner>,
    /// Locks that belong to this description: flock and open-file-description locks.
    pub locks: Vec<lock::OfDescription>,
    pub kind: Kind,
}

/// Device and inode of the file behind a description.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ObjectKey {
    pub dev: u64,
    pub ino: u64,
}

/// Who gets SIGIO and SIGURG.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// 0: a thread, 1: a process, 2: a group.
    pub kind: i32,
    /// Its number inside the sandbox.
    pub number: InsidePid,
    /// The signal sent instead of SIGIO; 0 for SIGIO itself.
    pub signal: i32,
}

/// What a description leads to; one module per kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    Regular(regular::State),
    Directory(directory::State),
    /// A descriptor opened with `O_PATH`, whatever it points at.
    Path(Place),
    Pipe(pipe::End),
    Fifo(fifo::State),
    CharDevice(chardev::State),
    PtyMaster(pty::End),
    PtySlave(pty::End),
    Eventfd(eventfd::State),
    Epoll(epoll::State),
    Timerfd(timerfd::State),
    Signalfd(signalfd::State),
    Inotify(inotify::State),
    Pidfd(pidfd::State),
    Memfd(memfd::State),
    Mqueue(mqueue::State),
    Unix(unix::State),
    Tcp(tcp::State),
    Udp(udp::State),
    Netlink(netlink::State),
    External(ExternalId),
}

impl Kind {
    /// A file that has no name, or none any more.
    pub(super) fn is_nameless_file(&self) -> bool {
        match self {
            Kind::Memfd(_) => true,
            Kind::Regular(state) => state.content.is_some(),
            _ => false,
        }
    }
}

impl Tables {
    /// Notes which files without a name are mapped as well. `name` gives what an object is called there, by its numbers.
    pub(crate) fn note_mapped(&mut self, name: impl Fn(Key) -> Option<Key>) {
        for description in self.descriptions.iter_mut().filter(|d| d.kind.is_nameless_file()) {
            let ObjectKey { dev, ino } = description.object;
            let device = (rustix::fs::major(dev), rustix::fs::minor(dev));
            description.mapped = name((device, ino));
        }
    }

    /// Every content these tables refer to: what a store must keep while they are kept.
    pub fn contents(&self) -> impl Iterator<Item = ContentId> + '_ {
        self.descriptions.iter().filter_map(|d| match &d.kind {
            Kind::Regular(state) => state.content,
            Kind::Memfd(state) => Some(state.content),
            _ => None,
        })
    }

    /// Moves what is set to a time on a clock that begins with the machine.
    pub(crate) fn move_clocks(&mut self, monotonic: i64, boottime: i64) {
        for description in &mut self.descriptions {
            if let Kind::Timerfd(state) = &mut description.kind {
                state.move_clocks(monotonic, boottime);
            }
        }
    }

    /// The table of a process.
    #[must_use]
    pub fn process(&self, number: InsidePid) -> Option<&Table> {
        self.processes.iter().find(|p| p.process == number)
    }
}

/// The name under which the caller's store keeps a content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ContentId(pub u128);
