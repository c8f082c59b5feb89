//! Where a file lies: below the root of the sandbox, on another of its mounts, or nowhere any more.
//!
//! What lies below the root follows the root when that is switched: it is opened again by its path in the new
//! tree, and the inode number proves that it is the same file. Files of other mounts (`/proc`, `/dev`) are not
//! part of the file state; their descriptors stay good.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::error::{Error, bad_state, making};
use super::live::{Live, LiveDescription, statx};
use super::tables::ObjectKey;

/// Where a file lies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
    /// Below the root of the sandbox, on its own mount.
    Root { path: Vec<u8>, ino: u64 },
    /// On another mount of the sandbox; inode numbers there (`/proc`) need not be stable.
    Mount { path: Vec<u8>, object: ObjectKey },
    /// It has no name any more; `path` is the last one.
    Deleted { path: Vec<u8>, object: ObjectKey },
}

const DELETED: &[u8] = b" (deleted)";

impl Place {
    pub(super) fn of(live: &Live, description: &LiveDescription) -> Place {
        let on_root = description.mount == live.root_mount;
        Place::from_facts(on_root, &description.link, description.object, description.links)
    }

    /// From what `/proc` says: the link, the inode, and how many names that has.
    pub(super) fn from_facts(on_root: bool, link: &[u8], object: ObjectKey, links: u32) -> Place {
        let path = if links == 0 {
            link.strip_suffix(DELETED).unwrap_or(link)
        } else {
            link
        }
        .to_vec();
        match (links, on_root) {
            (0, _) => Place::Deleted { path, object },
            (_, true) => Place::Root {
                path,
                ino: object.ino,
            },
            (_, false) => Place::Mount { path, object },
        }
    }

    /// The last known path, for messages.
    pub(super) fn show(&self) -> String {
        match self {
            Place::Root { path, .. } | Place::Mount { path, .. } => {
                String::from_utf8_lossy(path).into_owned()
            }
            Place::Deleted { path, .. } => format!("{} (deleted)", String::from_utf8_lossy(path)),
        }
    }

    /// Is this the file a live description has open, on a mount that is still the right one?
    pub(super) fn fits(&self, live: &Live, mount: u64, object: ObjectKey, links: u32) -> bool {
        match self {
            Place::Root { ino, .. } => mount == live.root_mount && object.ino == *ino && links > 0,
            Place::Mount { object: wanted, .. } => mount != live.root_mount && object == *wanted && links > 0,
            Place::Deleted { object: wanted, .. } => object == *wanted && links == 0,
        }
    }

    /// Opens the file in the tree at `root`.
    ///
    /// # Errors
    /// When it has no name, or the tree has no such file.
    pub(super) fn open(&self, root: BorrowedFd<'_>, flags: u32) -> Result<OwnedFd, Error> {
        match self {
            Place::Root { path, ino } => open_same(root, path, *ino, flags),
            Place::Mount { path, .. } => {
                open_in_root(root, path, flags).map_err(making(format!("the open file {}", self.show())))
            }
            Place::Deleted { .. } => Err(bad_state(self.show(), "a file without a name cannot be opened")),
        }
    }
}

/// The flags of a description that also make sense when it is opened again.
const OPEN_FLAGS: u32 = (libc::O_ACCMODE
    | libc::O_APPEND
    | libc::O_NONBLOCK
    | libc::O_DSYNC
    | libc::O_SYNC
    | libc::O_DIRECT
    | libc::O_NOATIME
    | libc::O_DIRECTORY
    | libc::O_NOFOLLOW
    | libc::O_PATH) as u32
    | O_LARGEFILE;

/// The kernel's own bit; libc hides it on 64-bit machines, fdinfo does not.
const O_LARGEFILE: u32 = 0o100_000;

fn open_same(root: BorrowedFd<'_>, path: &[u8], ino: u64, flags: u32) -> Result<OwnedFd, Error> {
    let what = || format!("the open file {}", String::from_utf8_lossy(path));
    // The inode is checked before the file is opened for real: opening for writing would copy a wrong file up.
    let right = |path: &[u8]| -> Result<bool, Errno> {
        // The root itself is made anew with each mount.
        if path == b"/" {
            return Ok(true);
        }
        match open_in_root(root, path, (libc::O_PATH | libc::O_NOFOLLOW) as u32) {
            Ok(found) => Ok(statx(found.as_fd(), "", AtFlags::EMPTY_PATH)?.stx_ino == ino),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(false),
            Err(e) => Err(e),
        }
    };
    if right(path).map_err(making(what()))? {
        return open_in_root(root, path, flags).map_err(making(what()));
    }
    let found = super::search::by_inode(root, ino)
        .map_err(making(what()))?
        .ok_or_else(|| bad_state(what(), "the wanted file tree has no such file"))?;
    open_in_root(root, &found, flags).map_err(making(what()))
}

/// Opens a path as a process with that root would; never leaves it.
pub(super) fn open_in_root(root: BorrowedFd<'_>, path: &[u8], flags: u32) -> Result<OwnedFd, Errno> {
    let mut flags = flags & OPEN_FLAGS;
    if flags & libc::O_PATH as u32 != 0 {
        // openat2 is strict about what may accompany O_PATH.
        flags &= (libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW) as u32;
    } else {
        flags |= libc::O_NOCTTY as u32;
    }
    let flags = OFlags::from_bits_retain(flags | libc::O_CLOEXEC as u32);
    loop {
        match rustix::fs::openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT) {
            // A rename elsewhere made the walk ambiguous; the kernel asks to try again.
            Err(Errno::AGAIN) => continue,
            other => return other,
        }
    }
}

/// Opens the object behind a descriptor of ours anew: another description of the same object.
pub(super) fn reopen(fd: BorrowedFd<'_>, flags: u32) -> Result<OwnedFd, Errno> {
    // A file made by O_TMPFILE still shows that flag, part of which is O_DIRECTORY.
    let made_nameless = flags & libc::O_TMPFILE as u32 == libc::O_TMPFILE as u32;
    let flags = if made_nameless {
        flags & !(libc::O_TMPFILE as u32)
    } else {
        flags
    };
    let flags = (flags & OPEN_FLAGS & !(libc::O_NOFOLLOW as u32)) | (libc::O_CLOEXEC | libc::O_NOCTTY) as u32;
    rustix::fs::open(
        format!("/proc/self/fd/{}", fd.as_raw_fd()),
        OFlags::from_bits_retain(flags),
        Mode::empty(),
    )
}
