//! Metadata of single files: reading it, and giving it to another file.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat,
    fstat, lgetxattr, llistxattr, lsetxattr, lstat, openat, setxattr, utimensat,
};
use rustix::io::Errno;

use crate::error::{Context, Result};

/// Prefix of the attributes in which overlayfs keeps its books.
pub(crate) const OVERLAY: &str = "trusted.overlay.";
/// What a book-keeping attribute of an overlay *inside* a sandbox looks like in our layers: content, not books.
const ESCAPED: &str = "trusted.overlay.overlay.";
pub(crate) const OPAQUE: &str = "trusted.overlay.opaque";
pub(crate) const REDIRECT: &str = "trusted.overlay.redirect";
pub(crate) const WHITEOUT: &str = "trusted.overlay.whiteout";

pub(crate) type Xattr = (OsString, Vec<u8>);

/// Whether an attribute belongs to overlayfs, or to the filesystem, and not to the file.
pub(crate) fn is_private(name: &OsStr) -> bool {
    let bytes = name.as_bytes();
    // How XFS shows an ACL to the privileged, beside the ACL itself.
    if bytes.starts_with(b"trusted.SGI_ACL_") {
        return true;
    }
    bytes.starts_with(OVERLAY.as_bytes()) && !bytes.starts_with(ESCAPED.as_bytes())
}

/// The value of one extended attribute; `None` when the file has no such attribute.
pub(crate) fn xattr(path: &Path, name: &OsStr) -> io::Result<Option<Vec<u8>>> {
    let mut buffer = vec![0u8; 256];
    loop {
        match lgetxattr(path, name, &mut buffer[..]) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(Some(buffer));
            }
            Err(Errno::RANGE) => {
                let wanted = lgetxattr(path, name, &mut [0u8; 0][..])
                    .unwrap_or(65536)
                    .max(buffer.len() * 2);
                buffer.resize(wanted, 0);
            }
            Err(Errno::NODATA | Errno::OPNOTSUPP) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Names of all extended attributes of a file, sorted.
pub(crate) fn xattr_names(path: &Path) -> io::Result<Vec<OsString>> {
    let mut buffer = vec![0u8; 1024];
    let length = loop {
        match llistxattr(path, &mut buffer[..]) {
            Ok(length) => break length,
            Err(Errno::RANGE) => buffer.resize(buffer.len() * 4, 0),
            Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        }
    };
    let mut names: Vec<OsString> = buffer[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| OsString::from_vec(name.to_vec()))
        .collect();
    names.sort();
    Ok(names)
}

/// The attributes of a file that are its own, sorted by name.
pub(crate) fn own_xattrs(path: &Path) -> io::Result<Vec<Xattr>> {
    let mut found = Vec::new();
    for name in xattr_names(path)? {
        if !is_private(&name)
            && let Some(value) = xattr(path, &name)?
        {
            found.push((name, value));
        }
    }
    Ok(found)
}

/// Everything about a file except its type, its content and its names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Metadata {
    pub uid: u32,
    pub gid: u32,
    /// Permission bits with set-id and sticky bits.
    pub mode: u32,
    pub atime: (i64, i64),
    pub mtime: (i64, i64),
    pub xattrs: Vec<Xattr>,
}

impl Metadata {
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let stat = lstat(path).doing("reading", path)?;
        let xattrs = own_xattrs(path).doing("reading the attributes of", path)?;
        Ok(Self::new(&stat, xattrs))
    }

    pub(crate) fn new(stat: &Stat, xattrs: Vec<Xattr>) -> Self {
        Self {
            uid: stat.st_uid,
            gid: stat.st_gid,
            mode: stat.st_mode & 0o7777,
            atime: (stat.st_atime, stat.st_atime_nsec),
            mtime: (stat.st_mtime, stat.st_mtime_nsec),
            xattrs,
        }
    }

    /// Gives all of it to the file `path`, which has no attributes of its own yet. The last part of the path is never
    /// followed if it is a symbolic link, also not when it becomes one meanwhile.
    pub(crate) fn apply(&self, path: &Path) -> Result<()> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(CWD, path, flags, Mode::empty()).doing("opening", path)?;
        let stat = fstat(&file).doing("reading", path)?;
        let is_link = FileType::from_raw_mode(stat.st_mode) == FileType::Symlink;
        if (stat.st_uid, stat.st_gid) != (self.uid, self.gid) {
            let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
            chownat(&file, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)
                .doing("changing the owner of", path)?;
        }
        // Calls that know no empty path reach the file through its descriptor. A symbolic link cannot be reached so,
        // but the calls that it allows do not follow it.
        let pinned = PathBuf::from(format!("/proc/thread-self/fd/{}", file.as_raw_fd()));
        // After the owner, because a change of owner clears the set-id bits; before the attributes, because a
        // change of mode rewrites an ACL; and capabilities are an attribute that a change of owner clears.
        if !is_link {
            chmodat(CWD, &pinned, Mode::from_raw_mode(self.mode), AtFlags::empty())
                .doing("changing the mode of", path)?;
        }
        for (name, value) in &self.xattrs {
            match is_link {
                true => lsetxattr(path, name, value, XattrFlags::empty()),
                false => setxattr(&pinned, name, value, XattrFlags::empty()),
            }
            .doing("setting an attribute of", path)?;
        }
        self.apply_times(path)
    }

    pub(crate) fn apply_times(&self, path: &Path) -> Result<()> {
        let spec = |(sec, nsec): (i64, i64)| Timespec {
            tv_sec: sec,
            tv_nsec: nsec as _,
        };
        let times = Timestamps {
            last_access: spec(self.atime),
            last_modification: spec(self.mtime),
        };
        utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).doing("setting the times of", path)
    }
}

/// Replaces a small file so that after a crash either the old or the new content is there.
pub(crate) fn write_durably(path: &Path, content: &[u8]) -> Result<()> {
    let draft = path.with_extension("draft");
    let write = || -> io::Result<()> {
        let mut file = fs::File::create(&draft)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&draft, path)?;
        fs::File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
    };
    write().doing("writing", path)
}
