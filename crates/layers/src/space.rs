//! Where in the store's filesystem the files of a state are: what states share, and what goes with them.

use std::collections::{HashMap, HashSet};
use std::fs::{self, Metadata, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use deltabox_sys::extents;
use rustix::fs::OFlags;

use crate::error::{Context, Error, Result};
use crate::ids::VolumeId;
use crate::store::Store;
use crate::tree::LayerName;
use crate::volume::{Frozen, Top};

/// Addresses of what a filesystem cannot tell the place of begin here, far beyond any device.
const SOMEWHERE: u64 = 1 << 62;

/// Something that never changes, so that it has to be looked at only once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Piece {
    /// A frozen layer; in a snapshot it is where it was.
    Layer(LayerName),
    /// The writable layer of a snapshot.
    Snapshot(VolumeId),
}

/// Where the files of one tree are.
type Files = HashMap<Version, Vec<Range<u64>>>;

/// A file with what it held at some time: inode number, time of the last change, size on disk.
type Version = (u64, (i64, i64), u64);

/// What has been found out so far.
#[derive(Debug, Default)]
pub(crate) struct Places(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    pieces: HashMap<Piece, Arc<Vec<Range<u64>>>>,
    /// Files of the snapshot looked at last: most of another one's are the same.
    recent: Files,
    /// Addresses given out from [`SOMEWHERE`] on.
    given: u64,
}

impl Store {
    /// Where the files of a state above the base are: addresses that other states have in common as far as they share
    /// the content, without the metadata. Looks at each file the first time a layer is asked for.
    ///
    /// # Errors
    /// [`Error::Missing`], failed system calls.
    pub fn places(&self, frozen: &Frozen) -> Result<Vec<Range<u64>>> {
        let mut found = Vec::new();
        for (piece, path) in self.pieces(frozen)? {
            found.extend_from_slice(&self.piece(piece, &path)?);
        }
        Ok(found)
    }

    fn pieces(&self, frozen: &Frozen) -> Result<Vec<(Piece, PathBuf)>> {
        let missing = || Error::Missing(frozen.to_string());
        let volume = self.volume(frozen.volume)?;
        let mut found = Vec::new();
        let parent = match frozen.top {
            Top::Base => None,
            Top::Layer(id) => Some(id),
            Top::Snapshot(id) => {
                let name = volume.find_package(id)?.ok_or_else(missing)?;
                let path = volume.path.join("upper").join(name.to_string()).join("fs");
                found.push((Piece::Snapshot(frozen.volume), path));
                name.below()
            }
        };
        for name in volume.chain(parent).ok_or_else(missing)? {
            found.push((Piece::Layer(name), volume.layer_path(name)));
        }
        Ok(found)
    }

    fn piece(&self, piece: Piece, path: &Path) -> Result<Arc<Vec<Range<u64>>>> {
        let known = || self.0.places.0.lock().expect("no panic while held");
        if let Some(places) = known().pieces.get(&piece) {
            return Ok(Arc::clone(places));
        }
        let mut walk = Walk::default();
        let snapshot = matches!(piece, Piece::Snapshot(_));
        if snapshot {
            walk.recent = std::mem::take(&mut known().recent);
        }
        walk.directory(path)?;
        let mut known = known();
        if snapshot {
            known.recent = walk.files;
        }
        if walk.elsewhere > 0 {
            let start = SOMEWHERE + known.given;
            known.given += walk.elsewhere;
            walk.places.push(start..start + walk.elsewhere);
        }
        let places = Arc::new(walk.places);
        known.pieces.insert(piece, Arc::clone(&places));
        Ok(places)
    }

    /// Forgets what is known of all but these states.
    pub(crate) fn forget_places(&self, kept: &[Frozen]) -> Result<()> {
        let known = || self.0.places.0.lock().expect("no panic while held");
        if known().pieces.is_empty() {
            return Ok(());
        }
        let mut needed = HashSet::new();
        for state in kept {
            needed.extend(self.pieces(state)?.into_iter().map(|(piece, _)| piece));
        }
        known().pieces.retain(|piece, _| needed.contains(piece));
        Ok(())
    }
}

#[derive(Default)]
struct Walk {
    places: Vec<Range<u64>>,
    /// Bytes of files whose place the filesystem does not tell.
    elsewhere: u64,
    /// Files of several names that have been seen.
    linked: HashSet<u64>,
    files: Files,
    /// Files of a similar tree.
    recent: Files,
}

impl Walk {
    fn directory(&mut self, dir: &Path) -> Result<()> {
        for entry in fs::read_dir(dir).doing("listing", dir)? {
            let entry = entry.doing("listing", dir)?;
            let metadata = entry.metadata().doing("reading", entry.path())?;
            if metadata.is_dir() {
                self.directory(&entry.path())?;
            } else if metadata.is_file()
                && metadata.blocks() > 0
                && (metadata.nlink() == 1 || self.linked.insert(metadata.ino()))
            {
                self.file(&entry.path(), &metadata)?;
            }
        }
        Ok(())
    }

    fn file(&mut self, path: &Path, metadata: &Metadata) -> Result<()> {
        let changed = (metadata.ctime(), metadata.ctime_nsec());
        let version = (metadata.ino(), changed, metadata.blocks());
        let places = match self.recent.remove(&version) {
            Some(places) => places,
            None => self.look(path, metadata)?,
        };
        self.places.extend_from_slice(&places);
        self.files.insert(version, places);
        Ok(())
    }

    fn look(&mut self, path: &Path, metadata: &Metadata) -> Result<Vec<Range<u64>>> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32)
            .open(path)
            .doing("opening", path)?;
        match extents::extents(file.as_fd()) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                self.elsewhere += metadata.blocks() * 512;
                Ok(Vec::new())
            }
            places => places.doing("asking for the place of", path),
        }
    }
}
