//! A package: the directories that one live overlay writes to.
//!
//! `upper/<id>.<parent>/` holds `fs` (the writable layer), `work` (overlayfs's own), and the empty `layer`, which
//! becomes the frozen layer `layers/<id>.<parent>`. The writable layer cannot become it itself: overlayfs refuses
//! (`EBUSY`, with `index=on`) a lower layer whose root directory is the upper of a mount that still exists, and the
//! old mount exists as long as a process has its root or working directory there. So a freeze moves the few entries
//! of the root to `layer`.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use crate::error::{Context, Result};
use crate::ids::LayerId;
use crate::tree::LayerName;
use crate::volume::Volume;

#[derive(Clone, Debug)]
pub(crate) struct Package {
    pub volume: Arc<Volume>,
    pub id: LayerId,
    pub parent: Option<LayerId>,
}

impl Package {
    /// The name of the frozen layer that it becomes, which is also the package's own.
    pub(crate) fn name(&self) -> LayerName {
        LayerName::Plain {
            id: self.id,
            parent: self.parent,
        }
    }

    /// Path below the root of the store.
    pub(crate) fn relative(&self, part: &str) -> String {
        format!("volumes/{}/upper/{}/{part}", self.volume.id, self.name())
    }

    pub(crate) fn dir(&self) -> PathBuf {
        self.volume.path.join("upper").join(self.name().to_string())
    }

    pub(crate) fn fs(&self) -> PathBuf {
        self.dir().join("fs")
    }

    pub(crate) fn work(&self) -> PathBuf {
        self.dir().join("work")
    }

    pub(crate) fn layer(&self) -> PathBuf {
        self.dir().join("layer")
    }

    pub(crate) fn create(volume: &Arc<Volume>, id: LayerId, parent: Option<LayerId>) -> Result<Self> {
        let package = Self {
            volume: Arc::clone(volume),
            id,
            parent,
        };
        for path in [package.dir(), package.fs(), package.work(), package.layer()] {
            fs::create_dir(&path).doing("creating", &path)?;
        }
        Ok(package)
    }

    /// Moves everything from `fs` to `layer`. On failure what was moved is put back.
    pub(crate) fn move_entries(&self) -> Result<()> {
        let (from, to) = (self.fs(), self.layer());
        let mut moved = Vec::new();
        let entries = fs::read_dir(&from).doing("listing", &from)?;
        for entry in entries {
            let result = entry.and_then(|entry| {
                let name = entry.file_name();
                fs::rename(from.join(&name), to.join(&name)).map(|()| name)
            });
            match result {
                Ok(name) => moved.push(name),
                Err(error) => {
                    for name in moved {
                        // Moving back needs no more space than moving did; if it fails too, the first error is
                        // the one worth telling.
                        let _ = fs::rename(to.join(&name), from.join(&name));
                    }
                    return Err(error).doing("freezing an entry of", &from);
                }
            }
        }
        Ok(())
    }

    /// Undoes [`Self::move_entries`].
    pub(crate) fn move_back(&self) {
        let (from, to) = (self.layer(), self.fs());
        let Ok(entries) = fs::read_dir(&from) else { return };
        for entry in entries.flatten() {
            let _ = fs::rename(entry.path(), to.join(entry.file_name()));
        }
    }
}
