//! File locks, read from the `lock:` lines of fdinfo (format: fs/locks.c, `lock_get_status`).
//!
//! Open-file-description locks belong to the description and are taken again through a duplicate of ours. So do those
//! of flock, which remember their taker, though: that process takes them, once its table is right, and where it is gone
//! we do, who are as unknown in the sandbox as it is by then. POSIX locks belong to
//! process and file: the process itself has to take them, after every other change to its table, because closing any
//! descriptor of the file drops them all.

use std::os::fd::BorrowedFd;

use deltabox_sys::fd::{Range, lock_description, unlock_description};
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::error::{Error, making};
use crate::ids::InsidePid;

/// A lock that belongs to an open file description.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum OfDescription {
    /// flock(2), with the process that took it if that still lives.
    Flock {
        exclusive: bool,
        taker: Option<InsidePid>,
    },
    /// `F_OFD_SETLK`; `len` 0 is to the end of the file.
    Range { exclusive: bool, start: i64, len: i64 },
}

/// A POSIX lock of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Posix {
    /// The descriptor it was taken through.
    pub fd: i32,
    pub exclusive: bool,
    pub start: i64,
    /// 0: to the end of the file.
    pub len: i64,
}

/// One line of fdinfo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Line {
    Flock {
        exclusive: bool,
        /// The process that took it, by its number outside.
        taker: i32,
    },
    Posix {
        exclusive: bool,
        start: i64,
        len: i64,
    },
    OfDescription {
        exclusive: bool,
        start: i64,
        len: i64,
    },
    /// A lease or a delegation.
    Lease,
}

/// Parses `lock:\t1: POSIX  ADVISORY  WRITE 12 fe:00:1065 5 14`.
pub(super) fn parse(line: &str) -> Option<Line> {
    let mut words = line.strip_prefix("lock:")?.split_whitespace().skip(1);
    let kind = words.next()?;
    let mode = words.nth(1)?;
    let exclusive = mode == "WRITE";
    let taker = words.next()?.parse().ok()?;
    let mut bounds = words.skip(1);
    let start: i64 = bounds.next()?.parse().ok()?;
    let len = match bounds.next()? {
        "EOF" => 0,
        end => end.parse::<i64>().ok()? - start + 1,
    };
    match kind {
        "FLOCK" => Some(Line::Flock { exclusive, taker }),
        "POSIX" => Some(Line::Posix {
            exclusive,
            start,
            len,
        }),
        "OFDLCK" => Some(Line::OfDescription {
            exclusive,
            start,
            len,
        }),
        "LEASE" | "DELEG" => Some(Line::Lease),
        _ => None,
    }
}

/// The locks of a description, from its fdinfo, in a fixed order. `inside` gives the numbers of live processes.
pub(super) fn of_description(info: &str, inside: impl Fn(i32) -> Option<InsidePid>) -> Vec<OfDescription> {
    let mut locks: Vec<_> = info
        .lines()
        .filter_map(parse)
        .filter_map(|line| match line {
            Line::Flock { exclusive, taker } => Some(OfDescription::Flock {
                exclusive,
                taker: inside(taker),
            }),
            Line::OfDescription {
                exclusive,
                start,
                len,
            } => Some(OfDescription::Range {
                exclusive,
                start,
                len,
            }),
            Line::Posix { .. } | Line::Lease => None,
        })
        .collect();
    locks.sort_unstable();
    locks
}

/// The POSIX locks of a process, from the lines of its fdinfo files.
pub(super) fn of_process(lines: &[(i32, String)]) -> Vec<Posix> {
    let mut locks: Vec<_> = lines
        .iter()
        .filter_map(|(fd, line)| match parse(line)? {
            Line::Posix {
                exclusive,
                start,
                len,
            } => Some(Posix {
                fd: *fd,
                exclusive,
                start,
                len,
            }),
            _ => None,
        })
        .collect();
    locks.sort_unstable();
    // Duplicates of a descriptor show the same locks; one of them is enough.
    locks.dedup_by_key(|l| (l.exclusive, l.start, l.len, l.fd));
    locks
}

pub(super) fn has_lease(info: &str) -> bool {
    info.lines().any(|line| parse(line) == Some(Line::Lease))
}

/// Gives up what a description holds now.
pub(super) fn release(fd: BorrowedFd<'_>, held: &[OfDescription], name: &str) -> Result<(), Error> {
    for lock in held {
        match *lock {
            OfDescription::Flock { .. } => {
                rustix::fs::flock(fd, FlockOperation::NonBlockingUnlock)
                    .map_err(making(format!("the lock of {name}")))?;
            }
            OfDescription::Range { start, len, .. } => unlock_description(fd, Range { start, len })
                .map_err(making(format!("the locks of {name}")))?,
        }
    }
    Ok(())
}

/// Takes the lock of flock(2) ourselves, for a taker that is gone.
pub(super) fn flock(fd: BorrowedFd<'_>, exclusive: bool) -> Result<(), Errno> {
    let operation = if exclusive {
        FlockOperation::NonBlockingLockExclusive
    } else {
        FlockOperation::NonBlockingLockShared
    };
    rustix::fs::flock(fd, operation)
}

/// Takes what a description is to hold and nobody in particular takes.
pub(super) fn take(fd: BorrowedFd<'_>, wanted: &[OfDescription], name: &str) -> Result<(), Error> {
    for lock in wanted {
        match *lock {
            OfDescription::Flock { .. } => {}
            OfDescription::Range {
                exclusive,
                start,
                len,
            } => {
                lock_description(fd, exclusive, Range { start, len })
                    .map_err(making(format!("the locks of {name}")))?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_parsed() {
        let line = |text| parse(text).unwrap();
        assert_eq!(
            line("lock:\t1: FLOCK  ADVISORY  WRITE 12284 fe:00:10010652 0 EOF"),
            Line::Flock {
                exclusive: true,
                taker: 12284
            }
        );
        assert_eq!(
            line("lock:\t2: POSIX  ADVISORY  READ 12284 fe:00:10010652 5 14"),
            Line::Posix {
                exclusive: false,
                start: 5,
                len: 10
            }
        );
        assert_eq!(
            line("lock:\t3: OFDLCK ADVISORY  WRITE -1 fe:00:10010652 3 EOF"),
            Line::OfDescription {
                exclusive: true,
                start: 3,
                len: 0
            }
        );
        assert_eq!(
            line("lock:\t1: LEASE  ACTIVE    READ  9 fe:00:1 0 EOF"),
            Line::Lease
        );
        assert_eq!(parse("eventfd-count: 3"), None);
    }
}
