//! Which files of a frozen directory tree have several names, and which directories came from elsewhere.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use crate::error::{Context, Result};
use crate::nodes::{REDIRECT, xattr};

/// Found by one walk of a layer. Layers do not change, so it is kept.
#[derive(Debug, Default)]
pub(crate) struct LinkTable {
    /// By inode number, of files with more than one name.
    pub names: HashMap<u64, Vec<PathBuf>>,
    /// Renamed directories: the path in this layer, and the path that the layers below know it under.
    moved: Vec<(PathBuf, PathBuf)>,
}

impl LinkTable {
    pub(crate) fn scan(root: &Path) -> Result<Self> {
        let mut table = Self::default();
        let device = fs::symlink_metadata(root).doing("reading", root)?.dev();
        // Directories to visit, as (path here, path below).
        let mut pending = vec![(PathBuf::new(), PathBuf::new())];
        while let Some((here, below)) = pending.pop() {
            let dir = root.join(&here);
            for entry in fs::read_dir(&dir).doing("listing", &dir)? {
                let entry = entry.doing("listing", &dir)?;
                let path = here.join(entry.file_name());
                let metadata = entry.metadata().doing("reading", entry.path())?;
                if metadata.dev() != device {
                    continue;
                }
                if !metadata.is_dir() {
                    if metadata.nlink() > 1 {
                        table.names.entry(metadata.ino()).or_default().push(path);
                    }
                    continue;
                }
                let child_below = match redirect(&entry.path())? {
                    Some(target) => {
                        let target = resolve(&below, &target);
                        table.moved.push((path.clone(), target.clone()));
                        target
                    }
                    None => below.join(entry.file_name()),
                };
                pending.push((path, child_below));
            }
        }
        Ok(table)
    }

    /// Paths in the view with this layer under which the path `below` of the view without it may be found. Not all
    /// of them need to be there.
    pub(crate) fn lift(&self, below: &Path) -> Vec<PathBuf> {
        let mut found = vec![below.to_path_buf()];
        for (here, from) in &self.moved {
            if let Ok(rest) = below.strip_prefix(from) {
                found.push(here.join(rest));
            }
        }
        found
    }
}

/// Where a directory's content in lower layers is, if elsewhere.
pub(crate) fn redirect(dir: &Path) -> Result<Option<PathBuf>> {
    let value = xattr(dir, OsStr::new(REDIRECT)).doing("reading the redirect of", dir)?;
    Ok(value.map(|bytes| PathBuf::from(OsStr::from_bytes(&bytes))))
}

/// The target of a redirect, relative to the root, of a directory whose parent is `parent` in the layers below: an
/// absolute one counts from the root of the overlay, another one is a name in the same parent.
pub(crate) fn resolve(parent: &Path, target: &Path) -> PathBuf {
    match target.strip_prefix("/") {
        Ok(from_root) => from_root
            .components()
            .filter(|part| matches!(part, Component::Normal(_)))
            .collect(),
        Err(_) => parent.join(target),
    }
}
