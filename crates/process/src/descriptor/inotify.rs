//! inotify: watches by inode, and a queue of events.
//!
//! The kernel tells which inodes are watched, not by which path; the path is looked for only when a watch has to be
//! set again, in the tree of the wanted state. Numbers of watches are given out in order, so a new instance counts
//! up to each number wanted.
//!
//! Queued events can be read only by taking them out, and not be put back. A checkpoint therefore leaves them
//! alone and notes how many bytes there are. At a rollback a queue that is as long as it was is left alone; one
//! that differs cannot be rebuilt, and the program is told so in the kernel's own way: by an overflow event, upon
//! which programs look again.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use deltabox_sys::fd::{IntRequest, int_from_ioctl};
use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init, remove_watch};
use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::error::{Error, bad_state, making};
use super::live::{Live, statx};
use super::place::{Place, open_in_root};
use super::restore::Restore;
use super::tables::{Description, Kind, ObjectKey};

/// An inotify instance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Ordered by number.
    pub watches: Vec<Watch>,
    /// Bytes of events not yet read.
    pub queued: u32,
}

/// One watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Watch {
    pub number: i32,
    pub ino: u64,
    /// The kernel's device number, as fdinfo has it.
    pub dev: u64,
    pub mask: u32,
    /// On the sandbox's own mount: it follows the root.
    pub on_root: bool,
}

/// The highest number a new instance is counted up to; each step takes about two microseconds.
const NUMBER_MAX: i32 = 1_000_000;

/// The bits of a mask that a program may ask for; the kernel adds some of its own.
const ASKABLE: u32 = WatchFlags::ALL_EVENTS.bits()
    | WatchFlags::EXCL_UNLINK.bits()
    | WatchFlags::ONESHOT.bits()
    | WatchFlags::ONLYDIR.bits();

fn parse(line: &str, root_device: u64) -> Option<Watch> {
    let mut words = line.strip_prefix("inotify ")?.split_whitespace();
    let mut value = |name: &str| words.next()?.strip_prefix(name)?.strip_prefix(':');
    let number = value("wd")?.parse().ok()?;
    let ino = u64::from_str_radix(value("ino")?, 16).ok()?;
    let dev = u64::from_str_radix(value("sdev")?, 16).ok()?;
    let mask = u32::from_str_radix(value("mask")?, 16).ok()? & ASKABLE;
    Some(Watch {
        number,
        ino,
        dev,
        mask,
        on_root: dev == root_device,
    })
}

/// fdinfo has the kernel's own encoding of device numbers: 12 bits major, 20 bits minor.
fn kernel_device(major: u32, minor: u32) -> u64 {
    (u64::from(major) << 20) | u64::from(minor)
}

pub(super) fn survey(live: &Live, position: usize) -> Result<Option<(&'static str, &'static str)>, Error> {
    let watches = watches(live, position);
    if watches.iter().any(|w| w.number > NUMBER_MAX) {
        return Ok(Some((
            "its watches have numbers beyond a million, which take too long to count up to",
            "open a new inotify instance now and then",
        )));
    }
    Ok(None)
}

fn watches(live: &Live, position: usize) -> Vec<Watch> {
    let info = &live.descriptions[position].info;
    let mut watches: Vec<Watch> = info.lines().filter_map(|l| parse(l, live.root_device)).collect();
    watches.sort_unstable();
    watches
}

pub(super) fn capture(live: &Live, position: usize) -> Result<State, Error> {
    let fd = live.pull(position)?;
    let queued = int_from_ioctl(fd, IntRequest::InputQueue).map_err(making("an inotify instance"))?;
    Ok(State {
        watches: watches(live, position),
        queued: queued as u32,
    })
}

/// A live instance serves when all its wanted watches are there, on inodes that are still the right ones: watches
/// of inodes that went away with the old root cannot be moved, and a number once passed does not come back.
pub(super) fn same(wanted: &State, live: &Live, position: usize) -> bool {
    let Ok(now) = capture(live, position) else {
        return false;
    };
    now.watches == wanted.watches && (now.queued == wanted.queued || wanted.queued == 0)
}

pub(super) fn make() -> Result<OwnedFd, Error> {
    init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).map_err(making("an inotify instance"))
}

/// Sets the watches of new instances.
pub(super) fn restore_all(restore: &Restore<'_>) -> Result<(), Error> {
    for (position, description) in restore.wanted.descriptions.iter().enumerate() {
        let Kind::Inotify(state) = &description.kind else {
            continue;
        };
        if let Some(live) = restore.kept[position] {
            if state.queued == 0 {
                take_out(restore.live.pull(live)?).map_err(making("the queue of an inotify instance"))?;
            }
            continue;
        }
        let fd = restore.object(position)?;
        set_watches(state, fd, restore)?;
        if state.queued > 0 {
            overflow(fd).map_err(making("the queue of an inotify instance"))?;
        }
    }
    Ok(())
}

fn set_watches(state: &State, fd: BorrowedFd<'_>, restore: &Restore<'_>) -> Result<(), Error> {
    let root = restore.environment.root;
    let mut next = 1;
    for watch in &state.watches {
        let found = find(watch, root)?;
        let Some(target) = found.map_or_else(|| nameless(watch, restore), |found| Ok(Some(found)))? else {
            // Watched, but neither named nor open any more: no event can come of it but its end.
            continue;
        };
        count_up_to(fd, root, &mut next, watch.number).map_err(making("an inotify instance"))?;
        let path = format!("/proc/self/fd/{}", target.as_raw_fd());
        let mask = WatchFlags::from_bits_retain(watch.mask);
        let number = add_watch(fd, path.as_str(), mask).map_err(making("an inotify watch"))?;
        if number != watch.number {
            return Err(bad_state("an inotify watch", "the kernel gave it another number"));
        }
        next = number + 1;
    }
    discard(fd).map_err(making("an inotify instance"))
}

/// Numbers are given out one after the other: those in between are taken and given back.
fn count_up_to(fd: BorrowedFd<'_>, root: BorrowedFd<'_>, next: &mut i32, wanted: i32) -> Result<(), Errno> {
    let path = format!("/proc/self/fd/{}", root.as_raw_fd());
    while *next < wanted {
        let number = add_watch(fd, path.as_str(), WatchFlags::DELETE_SELF)?;
        remove_watch(fd, number)?;
        *next = number + 1;
        if number % 1024 == 0 {
            discard(fd)?;
        }
    }
    Ok(())
}

/// Reads away the notices that watches were given back.
fn discard(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut buffer = vec![0; 65536];
    loop {
        match rustix::io::read(fd, &mut buffer) {
            Ok(_) => {}
            Err(Errno::AGAIN) => return Ok(()),
            Err(e) => return Err(e),
        }
    }
}

/// Empties the queue of an instance whose reads may wait.
fn take_out(fd: BorrowedFd<'_>) -> std::io::Result<()> {
    let mut buffer = vec![0; 65536];
    while int_from_ioctl(fd, IntRequest::InputQueue)? > 0 {
        rustix::io::read(fd, &mut buffer)?;
    }
    Ok(())
}

/// What is watched and has no name any more, but is open.
fn nameless(watch: &Watch, restore: &Restore<'_>) -> Result<Option<OwnedFd>, Error> {
    use rustix::fs::{major, minor};
    let is_it = |description: &Description| {
        let place = match &description.kind {
            Kind::Regular(state) => &state.place,
            Kind::Directory(state) => &state.place,
            _ => return false,
        };
        let ObjectKey { dev, ino } = description.object;
        matches!(place, Place::Deleted { .. })
            && (ino, kernel_device(major(dev), minor(dev))) == (watch.ino, watch.dev)
    };
    let found = restore.wanted.descriptions.iter().position(is_it);
    found
        .map(|found| {
            let object = restore.object(found)?;
            object.try_clone_to_owned().map_err(making("an inotify watch"))
        })
        .transpose()
}

fn find(watch: &Watch, root: BorrowedFd<'_>) -> Result<Option<OwnedFd>, Error> {
    let failed = || making("an inotify watch");
    let flags = libc::O_PATH as u32;
    if watch.on_root {
        let path = super::search::by_inode(root, watch.ino).map_err(failed())?;
        return path
            .map(|path| open_in_root(root, &path, flags).map_err(failed()))
            .transpose();
    }
    // Elsewhere (/dev, /proc): their top directories are what is worth watching there.
    for path in [
        &b"/dev"[..],
        b"/proc",
        b"/sys",
        b"/dev/pts",
        b"/dev/shm",
        b"/dev/mqueue",
    ] {
        let Ok(opened) = open_in_root(root, path, flags) else {
            continue;
        };
        let found = statx(std::os::fd::AsFd::as_fd(&opened), "", AtFlags::EMPTY_PATH).map_err(failed())?;
        if found.stx_ino == watch.ino && kernel_device(found.stx_dev_major, found.stx_dev_minor) == watch.dev
        {
            return Ok(Some(opened));
        }
    }
    Err(bad_state(
        "an inotify watch",
        "what it watches lies on a mount that cannot be searched",
    ))
}

/// Makes the kernel queue its "events were lost" event (`IN_Q_OVERFLOW`), which it does when the queue is full:
/// fills it with events of two files of ours, and takes those out again.
fn overflow(fd: BorrowedFd<'_>) -> std::io::Result<()> {
    let limit = std::fs::read_to_string("/proc/sys/fs/inotify/max_queued_events")?;
    let limit: u32 = limit.trim().parse().map_err(std::io::Error::other)?;
    let mut files = Vec::new();
    for _ in 0..2 {
        let file = rustix::fs::memfd_create("queue", rustix::fs::MemfdFlags::CLOEXEC)?;
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let watch = add_watch(fd, path.as_str(), WatchFlags::ATTRIB)?;
        files.push((file, watch));
    }
    // Equal events that follow each other are merged, so the two take turns.
    for turn in 0..=limit {
        rustix::fs::fchmod(&files[turn as usize % 2].0, Mode::from_raw_mode(0o600))?;
    }
    for (_, watch) in &files {
        remove_watch(fd, *watch)?;
    }
    const EVENT: usize = 16;
    let mut surplus = (int_from_ioctl(fd, IntRequest::InputQueue)? as usize).saturating_sub(EVENT);
    let mut buffer = vec![0; 4096 * EVENT];
    while surplus > 0 {
        let room = surplus.min(buffer.len());
        surplus -= rustix::io::read(fd, &mut buffer[..room])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overflow_is_the_only_event() {
        use std::os::fd::AsFd;
        let fd = make().unwrap();
        overflow(fd.as_fd()).unwrap();
        let mut buffer = [0; 4096];
        assert_eq!(rustix::io::read(&fd, &mut buffer).unwrap(), 16);
        assert_eq!(
            buffer[..8],
            [(-1_i32).to_ne_bytes(), 0x4000_i32.to_ne_bytes()].concat()
        );
        assert_eq!(rustix::io::read(&fd, &mut buffer), Err(Errno::AGAIN));
    }

    #[test]
    fn lines_are_parsed() {
        let line = "inotify wd:1 ino:3c4a7 sdev:fe00000 mask:800afff ignored_mask:0 fhandle-bytes:8";
        let watch = parse(line, 0xfe0_0000).unwrap();
        assert_eq!((watch.number, watch.ino, watch.on_root), (1, 0x3c4a7, true));
        assert_eq!(watch.mask, 0xfff);
        assert_eq!(kernel_device(254, 0), 0xfe0_0000);
    }
}
