//! Directories, with the position of a reader in them.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, Timespec, Timestamps};
use serde::{Deserialize, Serialize};

use super::error::{Error, making};
use super::live::{Live, LiveDescription};
use super::place::{Place, open_in_root};

/// An open directory. The position is that of the description.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    pub place: Place,
}

pub(super) fn capture(live: &Live, description: &LiveDescription) -> State {
    State {
        place: Place::of(live, description),
    }
}

pub(super) fn same(wanted: &State, live: &Live, description: &LiveDescription) -> bool {
    wanted
        .place
        .fits(live, description.mount, description.object, description.links)
}

pub(super) fn make(wanted: &State, flags: u32, root: BorrowedFd<'_>) -> Result<OwnedFd, Error> {
    match wanted.place {
        Place::Deleted { .. } => {
            removed(root, flags).map_err(making(format!("the directory {}", wanted.place.show())))
        }
        _ => wanted.place.open(root, flags),
    }
}

/// A directory that is already removed again: what a process standing in a deleted directory has. The root
/// directory, which it is made in, keeps its times.
pub(super) fn removed(root: BorrowedFd<'_>, flags: u32) -> std::io::Result<OwnedFd> {
    let mut random = [0; 8];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
    let name = format!(".removed-{:016x}", u64::from_ne_bytes(random));
    let stat = rustix::fs::fstat(root)?;
    rustix::fs::mkdirat(root, name.as_str(), Mode::from_raw_mode(0o755))?;
    let opened = open_in_root(root, name.as_bytes(), flags | libc::O_DIRECTORY as u32);
    rustix::fs::unlinkat(root, name.as_str(), AtFlags::REMOVEDIR)?;
    let time = |tv_sec, tv_nsec| Timespec { tv_sec, tv_nsec };
    let times = Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    };
    rustix::fs::utimensat(root, ".", &times, AtFlags::empty())?;
    Ok(opened?)
}
