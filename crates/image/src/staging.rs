//! Directories under a temporary name that vanish unless they are published.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};

use crate::error::{Error, Result};
use crate::root;

const PREFIX: &str = ".import-";

/// A private directory beside what will be published. It is locked as long as its owner lives, so that what
/// a killed process left behind can be told from what is in use.
pub(crate) struct Staging {
    pub path: PathBuf,
    parent: OwnedFd,
    name: String,
    /// Holds the lock.
    own: OwnedFd,
}

impl Staging {
    /// Makes a staging directory in `parent`, and removes those that dead processes left there.
    pub fn new(parent: &Path) -> Result<Self> {
        let parent_fd = open_dir(parent)?;
        // The lock on the directory itself needs no file that would stay behind.
        rustix::fs::flock(&parent_fd, FlockOperation::LockExclusive)
            .map_err(|e| Error::io("lock", parent)(e.into()))?;
        sweep(&parent_fd);
        let unique = unique();
        let name = format!("{PREFIX}{unique}");
        let path = parent.join(&name);
        let made = rustix::fs::mkdirat(&parent_fd, name.as_str(), Mode::from_raw_mode(0o700));
        made.map_err(|e| Error::io("create a directory", &path)(e.into()))?;
        let own =
            root::open_dir(&parent_fd, name.as_bytes()).map_err(|e| Error::io("open", &path)(e.into()))?;
        rustix::fs::flock(&own, FlockOperation::NonBlockingLockExclusive)
            .map_err(|e| Error::io("lock", &path)(e.into()))?;
        rustix::fs::flock(&parent_fd, FlockOperation::Unlock)
            .map_err(|e| Error::io("unlock", parent)(e.into()))?;
        Ok(Staging {
            path,
            parent: parent_fd,
            name,
            own,
        })
    }

    /// Makes an empty directory in it.
    pub fn dir(&self, name: &str) -> Result<(PathBuf, OwnedFd)> {
        let path = self.path.join(name);
        let made = rustix::fs::mkdirat(&self.own, name, Mode::from_raw_mode(0o700));
        made.map_err(|e| Error::io("create a directory", &path)(e.into()))?;
        let fd =
            root::open_dir(&self.own, name.as_bytes()).map_err(|e| Error::io("open", &path)(e.into()))?;
        Ok((path, fd))
    }

    /// Brings everything written so far to the medium.
    pub fn sync(&self) -> Result<()> {
        rustix::fs::syncfs(&self.own).map_err(|e| Error::io("sync", &self.path)(e.into()))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Nothing more can be done about a failure here; the next import tries again.
        if let Err(error) = root::remove(&self.parent, self.name.as_bytes()) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove a staging directory");
        }
    }
}

/// Removes staging directories without a living owner. Called with the parent's lock held.
fn sweep(parent: &OwnedFd) {
    let Ok(names) = root::children(parent) else { return };
    for name in names.iter().filter(|name| name.starts_with(PREFIX.as_bytes())) {
        let Ok(dir) = root::open_dir(parent, name) else {
            continue;
        };
        if rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive).is_ok() {
            let _ = root::remove(parent, name);
        }
    }
}

pub(crate) fn open_dir(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|e| Error::io("open the directory", path)(e.into()))
}

/// Brings a directory's own entries to the medium.
pub(crate) fn sync_dir(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|f| f.sync_all())
        .map_err(Error::io("sync", path))
}

pub(crate) fn unique() -> String {
    let mut bytes = [0; 12];
    // Before the generator is seeded (early boot) the process id must do: the lock keeps names apart.
    if rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::NONBLOCK).is_err() {
        bytes[..4].copy_from_slice(&std::process::id().to_le_bytes());
    }
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
