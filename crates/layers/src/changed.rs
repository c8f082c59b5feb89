//! Has anything changed since the last freeze? Answered without looking at what there is.

use std::fs;

use rustix::time::{ClockId, clock_gettime};

use crate::error::{Context, Result};
use crate::nodes::Metadata;
use crate::package::Package;
use crate::store::Store;

/// What an unchanged writable layer looks like.
#[derive(Clone, Debug)]
pub(crate) enum Baseline {
    /// It is empty, and its root is as given.
    Empty(Metadata),
    /// No inode of its subvolume was changed after this transaction. While `unsure`, a change may hide in the page
    /// cache, see [`Tick`].
    Subvolume { changed_in: u64, unsure: bool },
    /// It has to be taken as changed.
    Unknown,
}

/// The kernel's coarse clock, which stamps files.
///
/// A write changes an inode (and so the subvolume's transaction number) at once only if it changes the time in it.
/// A program that wrote just before the freeze and writes again in the same tick changes nothing but a page, and
/// that is noticed when the page is written back. So unless the clock has ticked between stop and go, a flush is
/// needed to be sure.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tick(i64, i64);

impl Tick {
    pub(crate) fn now() -> Self {
        let now = clock_gettime(ClockId::RealtimeCoarse);
        Self(now.tv_sec, now.tv_nsec as i64)
    }
}

impl Baseline {
    /// The state of the package's subvolume, of which a snapshot was committed in the transaction `committed`, and
    /// in which nobody else has changed anything since. `since` is a moment at which the sandbox stood still already.
    ///
    /// A change in a transaction that is still open could not be told from another one in it, so then (somebody
    /// removed rubbish from the volume just now) nothing is known.
    pub(crate) fn of_subvolume(package: &Package, committed: u64, since: Tick) -> Result<Self> {
        let mut baseline = Self::of_running(package, committed)?;
        if let Self::Subvolume { unsure, .. } = &mut baseline {
            *unsure = since == Tick::now();
        }
        Ok(baseline)
    }

    /// As [`Self::of_subvolume`], of a sandbox that runs: what was written while the snapshot was made may be in the page
    /// cache alone.
    pub(crate) fn of_running(package: &Package, committed: u64) -> Result<Self> {
        let changed_in = package.volume.info()?.changed_in;
        match changed_in <= committed {
            true => Ok(Self::Subvolume {
                changed_in,
                unsure: true,
            }),
            false => Ok(Self::Unknown),
        }
    }

    pub(crate) fn is_changed(&mut self, store: &Store, package: &Package) -> Result<bool> {
        match self {
            Self::Unknown => Ok(true),
            Self::Empty(metadata) => {
                let fs = package.fs();
                let mut entries = fs::read_dir(&fs).doing("listing", &fs)?;
                Ok(entries.next().is_some() || differs(&Metadata::read(&fs)?, metadata))
            }
            Self::Subvolume { changed_in, unsure } => {
                let known = *changed_in;
                if package.volume.info()?.changed_in != known {
                    return Ok(true);
                }
                if *unsure {
                    store.flush()?;
                    if package.volume.info()?.changed_in != known {
                        return Ok(true);
                    }
                    *unsure = false;
                }
                Ok(false)
            }
        }
    }
}

/// Whether somebody changed the root directory. Reading it is no change.
fn differs(now: &Metadata, before: &Metadata) -> bool {
    (now.uid, now.gid, now.mode, now.mtime, &now.xattrs)
        != (before.uid, before.gid, before.mode, before.mtime, &before.xattrs)
}
