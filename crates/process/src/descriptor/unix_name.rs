//! Names of unix sockets: bound by our side, standing in the sandbox's root, so that a name reads exactly as the
//! program spelled it.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use deltabox_sys::socket;
use rustix::fs::{AtFlags, CWD, Gid, Mode, Stat, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use super::error::{Error, making};
use super::place::Place;
use super::restore::Restore;
use super::room;
use super::tables::Kind;
use super::unix::{Now, State};

/// The longest path an address holds.
const PATH_MAX: usize = 108;

/// The path in an address; `None` for abstract names and no name.
fn path(name: &[u8]) -> Option<&Path> {
    use std::os::unix::ffi::OsStrExt;
    let bytes = name.get(2..)?;
    let bytes = bytes.split(|&b| b == 0).next()?;
    (!bytes.is_empty()).then(|| Path::new(std::ffi::OsStr::from_bytes(bytes)))
}

fn address(path: &Path) -> Vec<u8> {
    use std::os::unix::ffi::OsStrExt;
    let mut bytes = (libc::AF_UNIX as u16).to_ne_bytes().to_vec();
    bytes.extend_from_slice(path.as_os_str().as_bytes());
    bytes.push(0);
    bytes
}

/// The working directory of the first process that holds the socket: what a relative name is relative to.
fn directory(restore: &Restore<'_>, wanted: usize) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    let holds = |t: &&super::tables::Table| t.slots.iter().any(|s| s.description as usize == wanted);
    match restore.wanted.processes.iter().find(holds).map(|t| &t.cwd) {
        Some(Place::Root { path, .. } | Place::Mount { path, .. }) => {
            PathBuf::from(std::ffi::OsStr::from_bytes(path))
        }
        _ => PathBuf::from("/"),
    }
}

/// An address by which a wanted socket is reached from anywhere in the sandbox.
pub(super) fn reachable(restore: &Restore<'_>, wanted: usize, state: &State) -> Result<Vec<u8>, Error> {
    match path(&state.name) {
        Some(relative) if relative.is_relative() => {
            let whole = directory(restore, wanted).join(relative);
            if whole.as_os_str().len() >= PATH_MAX {
                let source = io::Error::from(Errno::NAMETOOLONG);
                return Err(making(format!("unix socket {}", whole.display()))(source));
            }
            Ok(address(&whole))
        }
        _ => Ok(state.name.clone()),
    }
}

/// Gives a socket the name of a wanted one. A socket file of the wanted state is replaced for good; anything else
/// that lies at the path stays, and the socket is one whose file was removed.
pub(super) fn bind(
    restore: &Restore<'_>,
    now: &Now,
    wanted: usize,
    state: &State,
    socket: &OwnedFd,
) -> Result<(), Error> {
    if state.name.len() <= 2 {
        return Ok(());
    }
    let failed = || making(format!("the name of {}", restore.show(wanted)));
    let Some(path) = path(&state.name) else {
        let bind = || socket::bind(socket, &state.name);
        return room::inside(restore.live, None, bind).map_err(failed());
    };
    let directory = directory(restore, wanted);
    let root = restore.environment.root;
    let others = files_of_others(restore, now, state);
    let work = || {
        rustix::process::chdir(&directory)?;
        let place = Site::prepare(path, Some(&others))?;
        let bound = socket::bind(socket, &state.name);
        place.finish(path)?;
        bound
    };
    room::inside(restore.live, Some(root), work).map_err(failed())
}

/// Does the name of a wanted socket lead to the socket file with this inode number?
pub(super) fn leads_to(restore: &Restore<'_>, state: &State, ino: u32) -> Result<bool, Error> {
    let Some(path) = path(&state.name) else {
        return Ok(false);
    };
    let whole = directory(restore, position(restore, state)).join(path);
    let root = restore.environment.root;
    let bytes = {
        use std::os::unix::ffi::OsStrExt;
        whole.as_os_str().as_bytes().to_vec()
    };
    match super::place::open_in_root(root, &bytes, (libc::O_PATH | libc::O_NOFOLLOW) as u32) {
        Ok(file) => {
            let stat = rustix::fs::fstat(&file).map_err(making("a unix socket"))?;
            Ok(stat.st_ino as u32 == ino)
        }
        Err(_) => Ok(false),
    }
}

/// Socket files that stay although their path is wanted: they belong to other sockets.
fn files_of_others(restore: &Restore<'_>, now: &Now, state: &State) -> Vec<u32> {
    let kept = restore
        .kept
        .iter()
        .flatten()
        .filter_map(|&live| now.of(restore.live, live).file);
    let wanted = restore.wanted.descriptions.iter().filter_map(|d| match &d.kind {
        Kind::Unix(other) if !std::ptr::eq(other, state) => other.file,
        _ => None,
    });
    kept.map(|(ino, _)| ino)
        .chain(wanted)
        .filter(|ino| state.file != Some(*ino))
        .collect()
}

fn position(restore: &Restore<'_>, state: &State) -> usize {
    let is_it = |d: &super::tables::Description| matches!(&d.kind, Kind::Unix(s) if std::ptr::eq(s, state));
    restore
        .wanted
        .descriptions
        .iter()
        .position(is_it)
        .unwrap_or(usize::MAX)
}

/// A name that is there only while a connection is made.
pub(super) struct ForNow {
    path: PathBuf,
    site: Site,
}

impl ForNow {
    pub(super) fn address(&self) -> Vec<u8> {
        address(&self.path)
    }

    /// Removes the name and puts back what was there.
    pub(super) fn end(self, restore: &Restore<'_>) -> Result<(), Error> {
        let root: BorrowedFd<'_> = restore.environment.root;
        let work = || self.site.finish(&self.path);
        room::inside(restore.live, Some(root), work).map_err(making("the name of a unix socket"))
    }
}

/// Binds a socket to the name of a wanted one until [`ForNow::end`]. `None` for names without a path.
pub(super) fn bind_for_now(
    restore: &Restore<'_>,
    state: &State,
    socket: &OwnedFd,
) -> Result<Option<ForNow>, Error> {
    let failed = || making("the name of a unix socket");
    if state.name.len() <= 2 {
        // Nameless, but of two processes: any free abstract name will do, and is not kept by what is accepted.
        let automatic = (libc::AF_UNIX as u16).to_ne_bytes();
        room::inside(restore.live, None, || socket::bind(socket, &automatic)).map_err(failed())?;
        return Ok(None);
    }
    let Some(path) = path(&state.name) else {
        room::inside(restore.live, None, || socket::bind(socket, &state.name)).map_err(failed())?;
        return Ok(None);
    };
    let directory = directory(restore, position(restore, state));
    let whole = directory.join(path);
    let root = restore.environment.root;
    let site = room::inside(restore.live, Some(root), || {
        rustix::process::chdir(&directory)?;
        let site = Site::prepare(path, None)?;
        socket::bind(socket, &state.name)?;
        Ok(site)
    })
    .map_err(failed())?;
    Ok(Some(ForNow { path: whole, site }))
}

/// A place in the file tree where a socket file is about to be made.
struct Site {
    parent: PathBuf,
    parent_times: Timestamps,
    /// What was there and stays: moved aside under this name.
    aside: Option<PathBuf>,
    /// What was there and is replaced.
    replaced: Option<Stat>,
}

impl Site {
    fn prepare(path: &Path, others: Option<&[u32]>) -> io::Result<Site> {
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
            _ => PathBuf::from("."),
        };
        let parent = std::fs::canonicalize(parent)?;
        let parent_times = times(&rustix::fs::stat(&parent)?);
        let mut site = Site {
            parent,
            parent_times,
            aside: None,
            replaced: None,
        };
        // Any other socket file at the path is that of the wanted socket, or leads nowhere.
        let is_replaced = |stat: &Stat| {
            stat.st_mode & libc::S_IFMT == libc::S_IFSOCK
                && others.is_some_and(|others| !others.contains(&(stat.st_ino as u32)))
        };
        match rustix::fs::lstat(path) {
            Ok(stat) if is_replaced(&stat) => {
                rustix::fs::unlinkat(CWD, path, AtFlags::empty())?;
                site.replaced = Some(stat);
            }
            Ok(_) => {
                let mut random = [0; 8];
                rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
                let aside = site
                    .parent
                    .join(format!(".aside-{:016x}", u64::from_ne_bytes(random)));
                rustix::fs::rename(path, &aside)?;
                site.aside = Some(aside);
            }
            Err(Errno::NOENT) => {}
            Err(e) => return Err(e.into()),
        }
        Ok(site)
    }

    fn finish(&self, path: &Path) -> io::Result<()> {
        match &self.replaced {
            Some(stat) => {
                let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
                rustix::fs::chownat(CWD, path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
                let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
                rustix::fs::chmodat(CWD, path, mode, AtFlags::empty())?;
                rustix::fs::utimensat(CWD, path, &times(stat), AtFlags::SYMLINK_NOFOLLOW)?;
            }
            None => match rustix::fs::unlinkat(CWD, path, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(e) => return Err(e.into()),
            },
        }
        if let Some(aside) = &self.aside {
            rustix::fs::rename(aside, path)?;
        }
        rustix::fs::utimensat(CWD, &self.parent, &self.parent_times, AtFlags::empty())?;
        Ok(())
    }
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
