//! A directory tree that is only ever reached from its root's descriptor, so that no link in it can lead
//! elsewhere: openat2(2) with `RESOLVE_BENEATH` for parents, `AT_SYMLINK_NOFOLLOW` for the last component.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

/// Attribute that makes a directory of an overlayfs layer hide what is below it
/// (Documentation/filesystems/overlayfs.rst).
pub(crate) const OPAQUE: &str = "trusted.overlay.opaque";
/// Attributes by which overlayfs keeps its own records; an image must never bring them.
pub(crate) const OVERLAY_PREFIX: &[u8] = b"trusted.overlay.";

/// Why a path could not be reached.
#[derive(Debug)]
pub(crate) enum Reach {
    /// It leads out of the root, or through too many links.
    Outside,
    /// A component is there, but is no directory.
    NotDirectory,
    Other(Errno),
}

impl From<Errno> for Reach {
    fn from(e: Errno) -> Self {
        match e {
            Errno::XDEV | Errno::LOOP => Reach::Outside,
            Errno::NOTDIR => Reach::NotDirectory,
            e => Reach::Other(e),
        }
    }
}

/// How symbolic links among the parents of a path are treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Links {
    /// Followed as long as they stay beneath the root and are relative.
    Beneath,
    /// Never followed.
    Never,
}

/// An open root directory.
pub(crate) struct Root {
    pub fd: OwnedFd,
    links: Links,
    cached: Option<(Vec<u8>, Rc<OwnedFd>)>,
}

impl Root {
    pub fn new(fd: OwnedFd, links: Links) -> Self {
        Root {
            fd,
            links,
            cached: None,
        }
    }

    /// Opens the directory at `path` (the empty path is the root itself) as a place to act in.
    pub fn dir(&mut self, path: &[u8]) -> Result<Rc<OwnedFd>, Reach> {
        if let Some((cached, fd)) = &self.cached
            && cached == path
        {
            return Ok(fd.clone());
        }
        let fd = Rc::new(self.open(path, OFlags::PATH | OFlags::DIRECTORY)?);
        self.cached = Some((path.to_vec(), fd.clone()));
        Ok(fd)
    }

    /// Must be called after anything was removed or replaced: a remembered directory may be gone.
    pub fn forget(&mut self) {
        self.cached = None;
    }

    fn open(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Reach> {
        let path = if path.is_empty() { b"." } else { path };
        let mut resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        let flags = flags | OFlags::CLOEXEC;
        if self.links == Links::Never {
            resolve |= ResolveFlags::NO_SYMLINKS;
        }
        loop {
            match rustix::fs::openat2(&self.fd, path, flags, Mode::empty(), resolve) {
                // A rename elsewhere during a walk with `..` in it; the kernel asks to try again.
                Err(Errno::AGAIN | Errno::INTR) => continue,
                Err(Errno::NOTDIR) if self.links == Links::Never => return Err(self.why_not_dir(path)),
                result => return Ok(result?),
            }
        }
    }

    /// With `NO_SYMLINKS` and `O_DIRECTORY` a final link reads as "not a directory"; tells the two apart.
    fn why_not_dir(&self, path: &[u8]) -> Reach {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        match rustix::fs::openat2(
            &self.fd,
            path,
            OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
            resolve,
        ) {
            Err(Errno::LOOP) => Reach::Outside,
            _ => Reach::NotDirectory,
        }
    }
}

/// Splits a path into its parent and its last component.
pub(crate) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&b| b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

/// What is at `name`, if anything, without following it.
pub(crate) fn look(dir: &OwnedFd, name: &[u8]) -> rustix::io::Result<Option<Stat>> {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

pub(crate) fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// Whether it is overlayfs's mark for "removed": a character device 0/0.
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    kind(stat) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Removes whatever is at `name`, with everything in it. Links are removed, not followed.
pub(crate) fn remove(dir: &OwnedFd, name: &[u8]) -> rustix::io::Result<()> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => {}
        Err(Errno::NOENT) => return Ok(()),
        result => return result,
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let inner = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    for child in children(&inner)? {
        remove(&inner, &child)?;
    }
    rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)
}

/// Names in a directory, sorted.
pub(crate) fn children(dir: &OwnedFd) -> rustix::io::Result<Vec<Vec<u8>>> {
    let mut names = vec![];
    for entry in rustix::fs::Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    names.sort();
    Ok(names)
}

/// Opens a directory for reading and for changing its attributes.
pub(crate) fn open_dir(dir: &OwnedFd, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    let name = if name.is_empty() { b"." } else { name };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

pub(crate) fn set_opaque(dir: &OwnedFd) -> rustix::io::Result<()> {
    rustix::fs::fsetxattr(dir, OPAQUE, b"y", XattrFlags::empty())
}

pub(crate) fn is_opaque(dir: &OwnedFd) -> rustix::io::Result<bool> {
    let mut value = [0; 2];
    match rustix::fs::fgetxattr(dir, OPAQUE, &mut value[..]) {
        Ok(n) => Ok(&value[..n] == b"y"),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
        Err(e) => Err(e),
    }
}

/// A path by which calls without an `at` form reach `name` in an open directory.
pub(crate) fn proc_path(dir: &OwnedFd, name: &[u8]) -> Vec<u8> {
    use std::os::fd::AsRawFd;
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    path
}

/// Sets the modification time (and the access time to the same) without following a link.
pub(crate) fn set_mtime(dir: &OwnedFd, name: &[u8], ns: i128) -> rustix::io::Result<()> {
    let time = timespec(ns);
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    let name = if name.is_empty() { b"." } else { name };
    rustix::fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)
}

fn timespec(ns: i128) -> Timespec {
    let seconds = ns
        .div_euclid(1_000_000_000)
        .clamp(i128::from(i64::MIN), i128::from(i64::MAX));
    Timespec {
        tv_sec: seconds as i64,
        tv_nsec: ns.rem_euclid(1_000_000_000) as i64,
    }
}
