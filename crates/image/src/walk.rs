//! The entries of a directory in overlayfs format, or of any directory tree.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, SeekFrom, Stat};
use rustix::io::Errno;

use crate::entry::{Content, Entry, Extent, Kind};
use crate::error::{Error, Result};
use crate::root::{self, OPAQUE};

/// Iterates over a tree in depth-first order of names, the root first; other names of a file come as hard
/// links to the first. Marks of overlayfs become [`Kind::Whiteout`] and [`Kind::OpaqueDir`]; a redirect or
/// metacopy mark is refused, since only the overlay's merged view can tell what it stands for.
pub struct Walk {
    path: PathBuf,
    stack: Vec<Level>,
    start: Option<OwnedFd>,
    links: HashMap<(u64, u64), Vec<u8>>,
}

struct Level {
    dir: OwnedFd,
    path: Vec<u8>,
    /// In reverse: taken from the end.
    names: Vec<Vec<u8>>,
}

/// The entries of the tree at `path`. Stops at mount points' roots no more than at any directory.
pub fn walk(path: &Path) -> Result<Walk> {
    let dir = crate::staging::open_dir(path)?;
    Ok(Walk {
        path: path.into(),
        stack: vec![],
        start: Some(dir),
        links: HashMap::new(),
    })
}

impl Iterator for Walk {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(dir) = self.start.take() {
            return Some(self.directory(dir, vec![]));
        }
        loop {
            let level = self.stack.last_mut()?;
            let Some(name) = level.names.pop() else {
                self.stack.pop();
                continue;
            };
            let path = if level.path.is_empty() {
                name.clone()
            } else {
                [&level.path[..], b"/", &name].concat()
            };
            return Some(self.entry(path, &name));
        }
    }
}

impl Walk {
    fn failed(&self, path: &[u8]) -> impl FnOnce(Errno) -> Error + use<> {
        use std::os::unix::ffi::OsStrExt;
        let path = self.path.join(std::ffi::OsStr::from_bytes(path));
        move |e| Error::io("read", path)(e.into())
    }

    fn directory(&mut self, dir: OwnedFd, path: Vec<u8>) -> Result<Entry> {
        let fail = self.failed(&path);
        let read = || -> rustix::io::Result<_> {
            let stat = rustix::fs::fstat(&dir)?;
            Ok((
                stat,
                root::is_opaque(&dir)?,
                fd_xattrs(&dir)?,
                root::children(&dir)?,
            ))
        };
        let (stat, opaque, xattrs, mut names) = read().map_err(fail)?;
        names.reverse();
        let kind = if opaque { Kind::OpaqueDir } else { Kind::Dir };
        let entry = described(path.clone(), kind, &stat, xattrs)?;
        self.stack.push(Level { dir, path, names });
        Ok(entry)
    }

    fn entry(&mut self, path: Vec<u8>, name: &[u8]) -> Result<Entry> {
        let fail = self.failed(&path);
        let Some(level) = self.stack.last() else {
            return Err(fail(Errno::NOENT));
        };
        let stat = match root::look(&level.dir, name) {
            Ok(Some(stat)) => stat,
            Ok(None) => return Err(fail(Errno::NOENT)),
            Err(e) => return Err(fail(e)),
        };
        if root::kind(&stat) == FileType::Directory {
            let dir = root::open_dir(&level.dir, name).map_err(fail)?;
            return self.directory(dir, path);
        }
        if root::is_whiteout(&stat) {
            return described(path, Kind::Whiteout, &stat, vec![]);
        }
        if stat.st_nlink > 1 {
            let id = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.links.get(&id) {
                return described(path, Kind::HardLink(first.clone()), &stat, vec![]);
            }
            self.links.insert(id, path.clone());
        }
        let read = || other(&level.dir, name, &stat);
        let (kind, xattrs) = read().map_err(fail)?;
        described(path, kind, &stat, xattrs)
    }
}

type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

fn other(dir: &OwnedFd, name: &[u8], stat: &Stat) -> rustix::io::Result<(Kind, Xattrs)> {
    let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    let kind = match root::kind(stat) {
        FileType::RegularFile => {
            let flags =
                rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::CLOEXEC;
            let fd = rustix::fs::openat(dir, name, flags, rustix::fs::Mode::empty())?;
            let xattrs = fd_xattrs(&fd)?;
            return Ok((Kind::File(content(fd, stat.st_size as u64)?), xattrs));
        }
        FileType::Symlink => Kind::Symlink(rustix::fs::readlinkat(dir, name, vec![])?.into_bytes()),
        FileType::Fifo => Kind::Fifo,
        FileType::Socket => Kind::Socket,
        FileType::CharacterDevice => Kind::Device {
            block: false,
            major,
            minor,
        },
        FileType::BlockDevice => Kind::Device {
            block: true,
            major,
            minor,
        },
        _ => return Err(Errno::OPNOTSUPP),
    };
    let path = root::proc_path(dir, name);
    let xattrs = xattrs(
        |buffer| rustix::fs::llistxattr(&path[..], buffer),
        |name, buffer| rustix::fs::lgetxattr(&path[..], name, buffer),
    )?;
    Ok((kind, xattrs))
}

fn described(path: Vec<u8>, kind: Kind, stat: &Stat, mut xattrs: Xattrs) -> Result<Entry> {
    for (name, value) in &xattrs {
        let mark = name.strip_prefix(root::OVERLAY_PREFIX).unwrap_or(b"");
        if mark == b"redirect" || mark == b"metacopy" || (mark == b"opaque" && value == b"x") {
            let why = format!(
                "{} refers to other layers; resolve it first",
                crate::error::shown(name)
            );
            return Err(Error::Entry { entry: path, why });
        }
    }
    // The rest of overlayfs's own (origin, impure, nlink, ...) means something on this filesystem only.
    xattrs.retain(|(name, _)| name != OPAQUE.as_bytes() && !name.starts_with(root::OVERLAY_PREFIX));
    xattrs.sort();
    Ok(Entry {
        path,
        kind,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime_ns: i128::from(stat.st_mtime) * 1_000_000_000 + i128::from(stat.st_mtime_nsec),
        xattrs,
    })
}

fn fd_xattrs(fd: &OwnedFd) -> rustix::io::Result<Xattrs> {
    xattrs(
        |buffer| rustix::fs::flistxattr(fd, buffer),
        |name, buffer| rustix::fs::fgetxattr(fd, name, buffer),
    )
}

fn xattrs(
    list: impl Fn(&mut [u8]) -> rustix::io::Result<usize>,
    get: impl Fn(&[u8], &mut [u8]) -> rustix::io::Result<usize>,
) -> rustix::io::Result<Xattrs> {
    // XATTR_LIST_MAX and XATTR_SIZE_MAX of xattr(7) are both this.
    const MAX: usize = 64 << 10;
    let mut small = [0; 256];
    let names = match list(&mut small) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(vec![]),
        Ok(n) => small[..n].to_vec(),
        Err(Errno::RANGE) => {
            let mut buffer = vec![0; MAX];
            let n = list(&mut buffer)?;
            buffer.truncate(n);
            buffer
        }
        Err(e) => return Err(e),
    };
    let mut found = vec![];
    let mut buffer = vec![0; MAX];
    for name in names.split(|&b| b == 0).filter(|name| !name.is_empty()) {
        match get(name, &mut buffer) {
            Ok(n) => found.push((name.to_vec(), buffer[..n].to_vec())),
            Err(Errno::NODATA) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(found)
}

/// The data extents of a file, by SEEK_DATA and SEEK_HOLE (lseek(2)).
fn content(fd: OwnedFd, size: u64) -> rustix::io::Result<Content> {
    let mut extents = vec![];
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(&fd, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL | Errno::OPNOTSUPP) => at,
            Err(e) => return Err(e),
        };
        let end = match rustix::fs::seek(&fd, SeekFrom::Hole(start)) {
            Ok(end) => end.min(size),
            Err(Errno::INVAL | Errno::OPNOTSUPP) => size,
            Err(Errno::NXIO) => break,
            Err(e) => return Err(e),
        };
        if start < end {
            extents.push(Extent {
                offset: start,
                len: end - start,
            });
        }
        at = end.max(start + 1);
    }
    let data = Extents {
        file: File::from(fd),
        left: extents.clone().into(),
    };
    Ok(Content {
        size,
        extents,
        data: Box::new(data),
    })
}

struct Extents {
    file: File,
    left: std::collections::VecDeque<Extent>,
}

impl Read for Extents {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(extent) = self.left.front_mut() else {
            return Ok(0);
        };
        let want = buffer
            .len()
            .min(usize::try_from(extent.len).unwrap_or(usize::MAX));
        let n = self.file.read_at(&mut buffer[..want], extent.offset)?;
        extent.offset += n as u64;
        extent.len -= n as u64;
        if extent.len == 0 {
            self.left.pop_front();
        }
        Ok(n)
    }
}
