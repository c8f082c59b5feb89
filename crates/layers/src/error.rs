//! What can go wrong, in the words a person can act on.

use std::io;
use std::path::{Path, PathBuf};

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call failed.
    #[error("{doing} {}: {source}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },

    #[error(
        "the store {} is held by another daemon; stop that daemon or use another state directory",
        .0.display()
    )]
    StoreBusy(PathBuf),

    #[error(
        "the store image {} cannot be mounted ({reason}): it is damaged or of an unknown kind; repair it with the \
         filesystem's own check tool, or move it away to start with an empty store",
        path.display()
    )]
    ImageDamaged { path: PathBuf, reason: String },

    #[error("no {filesystem} store can be made at {}: {reason}", path.display())]
    CannotMake {
        filesystem: &'static str,
        path: PathBuf,
        reason: String,
    },

    #[error(
        "the store is on {0}, which has no snapshots, so files cannot be frozen while programs hold on to them; \
         use a btrfs store"
    )]
    NoSnapshots(String),

    #[error(
        "the base {} is on the store's own filesystem and overlaps it or shares its inode numbers; let the store \
         live in an image, or move it to another filesystem",
        .0.display()
    )]
    BaseOnStore(PathBuf),

    #[error("the files of {0} are not in the store any more")]
    Missing(String),

    #[error("the overlay cannot be mounted: {source}{detail}")]
    Mount { source: io::Error, detail: String },

    #[error(
        "owners of {} cannot be mapped to the sandbox's ({source}): its filesystem has no idmapped mounts; use a \
         base on ext4, XFS, btrfs or another filesystem that has",
        path.display()
    )]
    NotMappable { path: PathBuf, source: io::Error },

    #[error("{} is not a path inside the sandbox: {why}", path.display())]
    BadPath { path: PathBuf, why: &'static str },

    #[error("{} does not exist in {state}", path.display())]
    NotThere { path: PathBuf, state: String },

    #[error("{} is not an overlay layer as this program writes them: {why}", path.display())]
    BadLayer { path: PathBuf, why: String },
}

impl Error {
    /// The error number of the system call behind this error, if there was one.
    pub fn os_error(&self) -> Option<i32> {
        match self {
            Error::Io { source, .. } | Error::Mount { source, .. } | Error::NotMappable { source, .. } => {
                source.raw_os_error()
            }
            _ => None,
        }
    }
}

/// Says what was being done to which path when a system call failed.
pub(crate) trait Context<T> {
    fn doing(self, doing: &'static str, path: impl AsRef<Path>) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn doing(self, doing: &'static str, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|source| Error::Io {
            doing,
            path: path.as_ref().to_path_buf(),
            source: source.into(),
        })
    }
}
