//! A volume: the directory that holds all layers of a lineage. On btrfs it is a subvolume.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use deltabox_sys::btrfs::{self, SubvolumeInfo};
use serde::{Deserialize, Serialize};

use crate::error::{Context, Result};
use crate::ids::{LayerId, VolumeId};
use crate::tree::{LayerName, Tree};

/// An immutable state of a sandbox's files. Small, and complete together with the store and the base.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Frozen {
    pub volume: VolumeId,
    pub top: Top,
}

/// The uppermost layer of a frozen state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Top {
    /// Nothing lies on the base.
    Base,
    /// A frozen layer (frozen by a switch).
    Layer(LayerId),
    /// The writable layer as it was when the volume, which is a snapshot, was taken.
    Snapshot(LayerId),
}

impl std::fmt::Display for Frozen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.top {
            Top::Base => write!(f, "{}", self.volume),
            Top::Layer(id) => write!(f, "{}-{id}", self.volume),
            Top::Snapshot(id) => write!(f, "{}-{id}s", self.volume),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Volume {
    pub id: VolumeId,
    pub path: PathBuf,
    /// Shared with the volume it is a snapshot of, until one of them changes.
    pub tree: Mutex<Arc<Tree>>,
    /// Held while layers are merged, so that rubbish collection leaves drafts alone.
    pub squashing: Mutex<()>,
    /// Entries in layers, as far as they were counted.
    sizes: Mutex<Arc<HashMap<LayerName, u64>>>,
}

impl Volume {
    /// Makes an empty volume below `volumes`.
    pub(crate) fn create(volumes: &Path, id: VolumeId, subvolume: bool) -> Result<Self> {
        let name = id.to_string();
        let path = volumes.join(&name);
        if subvolume {
            let dir = File::open(volumes).doing("opening", volumes)?;
            btrfs::create_subvolume(dir.as_fd(), OsStr::new(&name)).doing("creating a subvolume", &path)?;
        } else {
            fs::create_dir(&path).doing("creating", &path)?;
        }
        for part in ["layers", "upper"] {
            let part = path.join(part);
            fs::create_dir(&part).doing("creating", &part)?;
        }
        Ok(Self {
            id,
            path,
            tree: Mutex::default(),
            squashing: Mutex::new(()),
            sizes: Mutex::default(),
        })
    }

    /// Opens a volume that is there.
    pub(crate) fn open(volumes: &Path, id: VolumeId) -> Result<Self> {
        let path = volumes.join(id.to_string());
        let mut tree = Tree::default();
        let layers = path.join("layers");
        for entry in fs::read_dir(&layers).doing("listing", &layers)? {
            let name = entry.doing("listing", &layers)?.file_name();
            if let Some(name) = name.to_str().and_then(LayerName::parse) {
                tree.insert(name);
            }
        }
        Ok(Self {
            id,
            path,
            tree: Mutex::new(Arc::new(tree)),
            squashing: Mutex::new(()),
            sizes: Mutex::default(),
        })
    }

    /// Takes a snapshot as the new volume `id`.
    pub(crate) fn snapshot(&self, volumes: &Path, id: VolumeId, read_only: bool) -> Result<Self> {
        let name = id.to_string();
        let path = volumes.join(&name);
        let dir = File::open(volumes).doing("opening", volumes)?;
        let source = File::open(&self.path).doing("opening", &self.path)?;
        btrfs::create_snapshot(dir.as_fd(), OsStr::new(&name), source.as_fd(), read_only)
            .doing("taking a snapshot of", &self.path)?;
        let tree = self.tree.lock().expect("no panic while held").clone();
        let sizes = self.sizes.lock().expect("no panic while held").clone();
        Ok(Self {
            id,
            path,
            tree: Mutex::new(tree),
            squashing: Mutex::new(()),
            sizes: Mutex::new(sizes),
        })
    }

    /// What the kernel knows about the subvolume.
    pub(crate) fn info(&self) -> Result<SubvolumeInfo> {
        let dir = File::open(&self.path).doing("opening", &self.path)?;
        btrfs::subvolume_info(dir.as_fd()).doing("asking about the subvolume", &self.path)
    }

    pub(crate) fn layer_path(&self, name: LayerName) -> PathBuf {
        self.path.join("layers").join(name.to_string())
    }

    /// Path of a layer below the root of the store.
    pub(crate) fn layer_relative(&self, name: LayerName) -> String {
        format!("volumes/{}/layers/{name}", self.id)
    }

    /// How many entries a frozen layer has.
    pub(crate) fn size(&self, name: LayerName) -> Result<u64> {
        if let Some(size) = self.sizes.lock().expect("no panic while held").get(&name) {
            return Ok(*size);
        }
        let size = count(&self.layer_path(name))?;
        self.remember_size(name, size);
        Ok(size)
    }

    pub(crate) fn remember_size(&self, name: LayerName, entries: u64) {
        let mut sizes = self.sizes.lock().expect("no panic while held");
        Arc::make_mut(&mut sizes).insert(name, entries);
    }

    pub(crate) fn chain(&self, top: Option<LayerId>) -> Option<Vec<LayerName>> {
        self.tree.lock().expect("no panic while held").chain(top)
    }

    pub(crate) fn plain_chain(&self, top: Option<LayerId>) -> Option<Vec<LayerName>> {
        self.tree.lock().expect("no panic while held").plain_chain(top)
    }

    /// See [`Tree::chain_of`].
    pub(crate) fn chain_down_to(&self, run: &[LayerName]) -> Vec<LayerName> {
        self.tree.lock().expect("no panic while held").chain_of(run)
    }

    pub(crate) fn insert(&self, name: LayerName) {
        Arc::make_mut(&mut self.tree.lock().expect("no panic while held")).insert(name);
    }

    pub(crate) fn remove(&self, name: LayerName) {
        Arc::make_mut(&mut self.tree.lock().expect("no panic while held")).remove(name);
    }

    /// The package of the writable layer `id`, as found in a snapshot.
    pub(crate) fn find_package(&self, id: LayerId) -> Result<Option<LayerName>> {
        let dir = self.path.join("upper");
        for entry in fs::read_dir(&dir).doing("listing", &dir)? {
            let name = entry.doing("listing", &dir)?.file_name();
            if let Some(name) = name.to_str().and_then(LayerName::parse)
                && name.id() == id
            {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }
}

fn count(dir: &Path) -> Result<u64> {
    let mut entries = 0;
    for entry in fs::read_dir(dir).doing("listing", dir)? {
        let entry = entry.doing("listing", dir)?;
        entries += 1;
        if entry.file_type().doing("reading", entry.path())?.is_dir() {
            entries += count(&entry.path())?;
        }
    }
    Ok(entries)
}
