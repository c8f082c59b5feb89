//! Names of unix sockets: bound by our side, so that a name reads exactly as the program spelled it.
//!
//! What a name says and where the socket file is are two things: the file may have been renamed or removed, the
//! directory a relative name began at may be another one. So a name is always bound in a directory of our own, with
//! that directory as root, and the file is then moved to where it belongs, or removed. A bound socket is reached
//! through its file, wherever that is.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use deltabox_sys::socket;
use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use super::error::{Error, making};
use super::live::{Live, device, statx};
use super::place::{Place, open_in_root};
use super::restore::Restore;
use super::room;
use super::tables::ObjectKey;

/// The path in an address; `None` for abstract names and no name.
pub(super) fn path(name: &[u8]) -> Option<&Path> {
    use std::os::unix::ffi::OsStrExt;
    let bytes = name.get(2..)?;
    let bytes = bytes.split(|&b| b == 0).next()?;
    (!bytes.is_empty()).then(|| Path::new(std::ffi::OsStr::from_bytes(bytes)))
}

/// Where the socket file is that leads to a live socket; `None` when there is none (any more).
pub(super) fn file_of(live: &Live, socket: BorrowedFd<'_>) -> Result<Option<Place>, Error> {
    let look = || -> io::Result<Option<Place>> {
        let Some(file) = socket::unix_file(socket)? else {
            return Ok(None);
        };
        let stat = statx(file.as_fd(), "", AtFlags::EMPTY_PATH)?;
        let link = rustix::fs::readlink(through(file.as_fd()), Vec::new())?;
        let object = ObjectKey {
            dev: device(&stat),
            ino: stat.stx_ino,
        };
        let on_root = stat.stx_mnt_id == live.root_mount;
        Ok(Some(Place::from_facts(
            on_root,
            link.as_bytes(),
            object,
            stat.stx_nlink,
        )))
    };
    let place = look().map_err(making("the file of a unix socket"))?;
    Ok(place.filter(|place| !matches!(place, Place::Deleted { .. })))
}

/// Does the file at this place lead to the live socket?
pub(super) fn leads_to(root: BorrowedFd<'_>, place: &Place, socket: BorrowedFd<'_>) -> Result<bool, Error> {
    let look = || -> io::Result<bool> {
        let (Place::Root { path, .. } | Place::Mount { path, .. }) = place else {
            return Ok(false);
        };
        let Some(file) = socket::unix_file(socket)? else {
            return Ok(false);
        };
        let Ok(found) = open_in_root(root, path, (libc::O_PATH | libc::O_NOFOLLOW) as u32) else {
            return Ok(false);
        };
        let (file, found) = (rustix::fs::fstat(file)?, rustix::fs::fstat(found)?);
        Ok((found.st_dev, found.st_ino) == (file.st_dev, file.st_ino))
    };
    look().map_err(making("the file of a unix socket"))
}

/// What leads to a file of ours even when it has no name.
fn through(file: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// How a bound socket is reached by others.
pub(super) enum Way {
    /// Through its file.
    File(OwnedFd),
    /// By its abstract name.
    Name(Vec<u8>),
}

impl Way {
    pub(super) fn to(socket: BorrowedFd<'_>) -> io::Result<Way> {
        Ok(match socket::unix_file(socket)? {
            Some(file) => Way::File(file),
            None => Way::Name(socket::local_address(socket)?),
        })
    }

    /// The address to be used in this process, as long as the way exists.
    pub(super) fn address(&self) -> Vec<u8> {
        match self {
            Way::File(file) => address_of(file.as_raw_fd()),
            Way::Name(name) => name.clone(),
        }
    }
}

/// The address of a socket file that a process has open at `fd`.
pub(super) fn address_of(fd: i32) -> Vec<u8> {
    let mut bytes = (libc::AF_UNIX as u16).to_ne_bytes().to_vec();
    bytes.extend_from_slice(format!("/proc/self/fd/{fd}\0").as_bytes());
    bytes
}

/// Gives a socket a name and, if its file is to have a place, that place: what lies there is replaced.
pub(super) fn bind(
    restore: &Restore<'_>,
    socket: &OwnedFd,
    name: &[u8],
    place: Option<&Place>,
) -> Result<(), Error> {
    use std::os::unix::ffi::OsStrExt;
    if name.len() <= 2 {
        return Ok(());
    }
    let bound = match (path(name), place) {
        (None, _) => socket::bind(socket, name),
        (Some(path), Some(Place::Root { path: at, .. } | Place::Mount { path: at, .. })) => {
            let at = Path::new(std::ffi::OsStr::from_bytes(at));
            let root = restore.environment.root;
            room::inside(restore.live, Some(root), || bind_at(socket, name, path, at))
        }
        (Some(path), _) => bind_nowhere(restore.live, socket, name, path),
    };
    bound.map_err(making("the name of a unix socket"))
}

/// Binds a socket to a name that leads nowhere.
pub(super) fn bind_nowhere(live: &Live, socket: &OwnedFd, name: &[u8], path: &Path) -> io::Result<()> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(context.as_fd())?;
    let flags = MountAttrFlags::empty();
    let nowhere = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, flags)?;
    room::inside(live, Some(nowhere.as_fd()), || {
        bind_here(socket, name, path)?;
        // Whoever is given the way to it may take it.
        rustix::fs::chmodat(CWD, path, Mode::from_raw_mode(0o777), AtFlags::empty())?;
        Ok(rustix::fs::unlinkat(CWD, path, AtFlags::empty())?)
    })
}

/// Binds a socket below the directory that is root and working directory of this thread.
fn bind_here(socket: &OwnedFd, name: &[u8], path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent()
        && !parent.as_os_str().is_empty()
    {
        std::fs::create_dir_all(parent)?;
    }
    socket::bind(socket, name)
}

/// Binds a socket so that its file comes to be at a place below the root of this thread, which is spent by it. The
/// directory keeps its times, and the file gets owner, mode and times of the one it replaces.
fn bind_at(socket: &OwnedFd, name: &[u8], path: &Path, place: &Path) -> io::Result<()> {
    let (Some(parent), Some(leaf)) = (place.parent(), place.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = rustix::fs::open(parent, directory, Mode::empty())?;
    let parent_times = times(&rustix::fs::fstat(&parent)?);
    let replaced = match rustix::fs::statat(&parent, leaf, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Some(stat),
        Err(Errno::NOENT) => None,
        Err(e) => return Err(e.into()),
    };
    let mut random = [0; 8];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
    let site = PathBuf::from(format!(".socket-{:016x}", u64::from_ne_bytes(random)));
    rustix::fs::mkdirat(&parent, &site, Mode::RWXU)?;
    let here = rustix::fs::openat(&parent, &site, directory, Mode::empty())?;
    rustix::process::fchdir(&here)?;
    rustix::process::chroot(".")?;
    let bound = bind_here(socket, name, path).and_then(|()| {
        if let Some(stat) = &replaced {
            make_like(path, stat)?;
        }
        Ok(rustix::fs::renameat(CWD, path, &parent, leaf)?)
    });
    for rest in std::fs::read_dir("/")? {
        std::fs::remove_dir_all(rest?.path())?;
    }
    rustix::fs::unlinkat(&parent, &site, AtFlags::REMOVEDIR)?;
    rustix::fs::utimensat(&parent, ".", &parent_times, AtFlags::empty())?;
    bound
}

fn make_like(path: &Path, stat: &Stat) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::chownat(CWD, path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
    rustix::fs::chmodat(CWD, path, mode, AtFlags::empty())?;
    rustix::fs::utimensat(CWD, path, &times(stat), AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}

fn times(stat: &Stat) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: stat.st_atime,
            tv_nsec: stat.st_atime_nsec,
        },
        last_modification: Timespec {
            tv_sec: stat.st_mtime,
            tv_nsec: stat.st_mtime_nsec,
        },
    }
}
