//! Hiding parts of a base: a bottom layer of whiteouts and opaque directories.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, XattrFlags, lsetxattr, mknodat};

use crate::error::{Context, Error, Result};
use crate::nodes::{Metadata, OPAQUE};

/// What to hide or replace, in order; later entries may lie in directories of earlier ones.
#[derive(Clone, Debug, Default)]
pub struct Mask {
    pub entries: Vec<MaskEntry>,
}

/// Paths are absolute, as seen in the sandbox; ids are the sandbox's.
#[derive(Clone, Debug)]
pub enum MaskEntry {
    /// The path does not exist.
    Hide { path: PathBuf },
    /// The path is a directory without the base's content.
    Directory {
        path: PathBuf,
        mode: u32,
        uid: u32,
        gid: u32,
    },
    /// The path is this file.
    File {
        path: PathBuf,
        mode: u32,
        uid: u32,
        gid: u32,
        content: Vec<u8>,
    },
    /// The path is a symbolic link.
    Link { path: PathBuf, target: PathBuf },
}

impl MaskEntry {
    fn path(&self) -> &Path {
        match self {
            Self::Hide { path }
            | Self::Directory { path, .. }
            | Self::File { path, .. }
            | Self::Link { path, .. } => path,
        }
    }
}

impl Mask {
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Makes the layer in the new directory `layer`, to lie on `base` (uppermost first).
    pub(crate) fn build(&self, layer: &Path, base: &[PathBuf]) -> Result<()> {
        fs::create_dir(layer).doing("creating", layer)?;
        let mut parents = vec![PathBuf::new()];
        for entry in &self.entries {
            let relative = relative(entry.path())?;
            make_parents(layer, base, relative, &mut parents)?;
            put(entry, &layer.join(relative))?;
        }
        // Last and from the bottom up, because making an entry changes its directory's time.
        for parent in parents.iter().rev() {
            if let Some(original) = find(base, parent) {
                Metadata::read(&original)?.apply(&layer.join(parent))?;
            }
        }
        Ok(())
    }
}

fn relative(path: &Path) -> Result<&Path> {
    let bad = |why| Error::BadPath {
        path: path.to_path_buf(),
        why,
    };
    let relative = path.strip_prefix("/").map_err(|_| bad("it is not absolute"))?;
    if relative.as_os_str().is_empty() {
        return Err(bad("the root itself cannot be masked"));
    }
    match relative
        .components()
        .all(|part| matches!(part, Component::Normal(_)))
    {
        true => Ok(relative),
        false => Err(bad("it has . or .. in it")),
    }
}

/// The directory `path` of the uppermost base layer that has it.
fn find(base: &[PathBuf], path: &Path) -> Option<PathBuf> {
    let mut candidates = base.iter().map(|layer| layer.join(path));
    candidates.find(|path| fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir()))
}

/// Directories above an entry show the base's content beside it, with the base's owner, mode and so on.
fn make_parents(layer: &Path, base: &[PathBuf], path: &Path, parents: &mut Vec<PathBuf>) -> Result<()> {
    let mut so_far = PathBuf::new();
    for part in path.parent().into_iter().flat_map(Path::components) {
        so_far.push(part);
        let dir = layer.join(&so_far);
        if fs::symlink_metadata(&dir).is_ok() {
            continue;
        }
        fs::create_dir(&dir).doing("creating", &dir)?;
        if find(base, &so_far).is_some() {
            parents.push(so_far.clone());
        }
    }
    Ok(())
}

fn put(entry: &MaskEntry, at: &Path) -> Result<()> {
    let owned = |uid, gid, mode| -> Result<()> {
        let mut metadata = Metadata::read(at)?;
        (metadata.uid, metadata.gid, metadata.mode) = (uid, gid, mode);
        metadata.apply(at)
    };
    match entry {
        MaskEntry::Hide { .. } => {
            mknodat(CWD, at, FileType::CharacterDevice, Mode::empty(), 0).doing("hiding", at)
        }
        MaskEntry::Directory { mode, uid, gid, .. } => {
            fs::create_dir(at).doing("creating", at)?;
            lsetxattr(at, OPAQUE, b"y", XattrFlags::empty()).doing("making opaque", at)?;
            owned(*uid, *gid, *mode)
        }
        MaskEntry::File {
            mode,
            uid,
            gid,
            content,
            ..
        } => {
            fs::write(at, content).doing("writing", at)?;
            owned(*uid, *gid, *mode)
        }
        MaskEntry::Link { target, .. } => symlink(target, at).doing("linking", at),
    }
}
