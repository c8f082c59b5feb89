//! Which live description can serve as which wanted one.
//!
//! A description that already leads to the wanted object is kept and only adjusted. Each live one serves at most
//! once, or two wanted descriptions would share an offset; first choice is what sits at the right descriptor
//! already.

use std::collections::HashMap;
use std::fs::File;

use super::class::{self, Class};
use super::error::{Error, making};
use super::external::Externals;
use super::live::{Live, LiveDescription};
use super::tables::{Description, Kind, ObjectKey, Tables};
use super::{
    chardev, directory, epoll, eventfd, fifo, inotify, memfd, mqueue, pidfd, pty, regular, socket, timerfd,
};
use crate::shared::Key;

/// Status flags that `fcntl(F_SETFL)` can change.
pub(super) const SETTABLE: u32 =
    (libc::O_APPEND | libc::O_NONBLOCK | libc::O_ASYNC | libc::O_DIRECT | libc::O_NOATIME) as u32;

/// Asynchronous mode is switched on by a process itself (`late`): a signal tells the descriptor that did it.
pub(super) const ASYNC: u32 = libc::O_ASYNC as u32;

/// Flags that are settled when a file is opened, and make a difference later.
const FIXED: u32 = (libc::O_ACCMODE | libc::O_PATH | libc::O_SYNC | libc::O_DSYNC) as u32;

/// For each wanted description the live one to keep.
pub(super) fn matching(
    wanted: &Tables,
    live: &Live,
    externals: &Externals,
    mapped: &HashMap<Key, File>,
) -> Result<Vec<Option<usize>>, Error> {
    let mut objects = HashMap::new();
    for (key, file) in mapped {
        let attributes = rustix::fs::fstat(file).map_err(making("a file that is mapped"))?;
        let (dev, ino) = (attributes.st_dev, attributes.st_ino);
        objects.insert(*key, ObjectKey { dev, ino });
    }
    let mut matching = Matching {
        wanted,
        live,
        externals,
        mapped: objects,
        kept: vec![None; wanted.descriptions.len()],
        taken: vec![false; live.descriptions.len()],
    };
    matching.in_place();
    matching.elsewhere();
    Ok(matching.kept)
}

struct Matching<'a> {
    wanted: &'a Tables,
    live: &'a Live,
    externals: &'a Externals,
    /// What is mapped, as it is now.
    mapped: HashMap<Key, ObjectKey>,
    kept: Vec<Option<usize>>,
    taken: Vec<bool>,
}

impl Matching<'_> {
    fn in_place(&mut self) {
        for table in &self.wanted.processes {
            for slot in &table.slots {
                let wanted = slot.description as usize;
                if self.kept[wanted].is_some() {
                    continue;
                }
                if let Some(found) = self.live.at(table.process, slot.fd) {
                    self.try_keep(wanted, found);
                }
            }
        }
    }

    fn elsewhere(&mut self) {
        let mut by_object: HashMap<ObjectKey, Vec<usize>> = HashMap::new();
        for (position, description) in self.live.descriptions.iter().enumerate() {
            if !self.taken[position] {
                by_object.entry(description.object).or_default().push(position);
            }
        }
        for wanted in 0..self.kept.len() {
            if self.kept[wanted].is_some() {
                continue;
            }
            let description = &self.wanted.descriptions[wanted];
            let object = self.mapped_now(description).unwrap_or(description.object);
            // The device of an overlay mount changes with the mount, the inode does not: but what lies there has
            // to be opened again in that case anyway.
            for &found in by_object.get(&object).into_iter().flatten() {
                if self.try_keep(wanted, found) {
                    break;
                }
            }
        }
    }

    fn try_keep(&mut self, wanted: usize, found: usize) -> bool {
        if self.taken[found] || !self.fits(wanted, found) {
            return false;
        }
        self.taken[found] = true;
        self.kept[wanted] = Some(found);
        true
    }

    fn fits(&self, wanted: usize, found: usize) -> bool {
        let description = &self.wanted.descriptions[wanted];
        let live = &self.live.descriptions[found];
        if (description.flags ^ live.flags) & FIXED != 0 {
            return false;
        }
        let is = |class: Class| class::of(self.live, live) == class;
        let ours = self.externals.find(live.object);
        if let Kind::External(id) = &description.kind {
            return ours == Some(*id);
        }
        if ours.is_some() && !is(Class::PtySlave) {
            return false;
        }
        self.same_object(description, live, found)
    }

    /// What has to be behind a description of something that is mapped as well.
    fn mapped_now(&self, description: &Description) -> Option<ObjectKey> {
        description.mapped.and_then(|key| self.mapped.get(&key).copied())
    }

    fn same_object(&self, description: &Description, live: &LiveDescription, found: usize) -> bool {
        let class = class::of(self.live, live);
        if let Some(object) = self.mapped_now(description) {
            return (class == Class::Memfd || class == Class::Regular) && live.object == object;
        }
        match &description.kind {
            Kind::Path(place) => {
                class == Class::Path && place.fits(self.live, live.mount, live.object, live.links)
            }
            Kind::Regular(state) => class == Class::Regular && regular::same(state, self.live, live),
            Kind::Directory(state) => class == Class::Directory && directory::same(state, self.live, live),
            Kind::Pipe(end) => {
                class == Class::Pipe && live.object == self.wanted.pipes[end.pipe as usize].object
            }
            Kind::Fifo(state) => class == Class::Fifo && fifo::same(state, self.live, live),
            Kind::CharDevice(state) => {
                (class == Class::CharDevice || class == Class::Tty) && chardev::same(state, self.live, live)
            }
            Kind::PtyMaster(end) => {
                class == Class::PtyMaster && pty::same(&self.wanted.ptys[end.pty as usize], live)
            }
            Kind::PtySlave(end) => {
                class == Class::PtySlave && pty::same(&self.wanted.ptys[end.pty as usize], live)
            }
            Kind::Eventfd(state) => class == Class::Eventfd && eventfd::same(state, live),
            Kind::Epoll(_) => class == Class::Epoll && epoll::same(),
            Kind::Timerfd(state) => class == Class::Timerfd && timerfd::same(state, live),
            Kind::Signalfd(_) => class == Class::Signalfd,
            Kind::Inotify(state) => class == Class::Inotify && inotify::same(state, self.live, found),
            Kind::Pidfd(state) => class == Class::Pidfd && pidfd::same(state, description.flags, live),
            Kind::Memfd(state) => class == Class::Memfd && memfd::same(state, self.live, found),
            Kind::Mqueue(state) => {
                class == Class::Mqueue
                    && live.object == description.object
                    && mqueue::same(state, self.live, found)
            }
            Kind::Unix(_) | Kind::Tcp(_) | Kind::Udp(_) | Kind::Netlink(_) => {
                class == Class::Socket
                    && live.object == description.object
                    && socket::same(&description.kind, self.live, found)
            }
            Kind::External(_) => false,
        }
    }
}
