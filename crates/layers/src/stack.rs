//! The merged view of layer directories, computed the way overlayfs does, without mounting them.
//!
//! Used on frozen layers to merge, compare and export them. Besides what is visible in the given layers it tells
//! what a directory shows from layers *below* them, which is what merging part of a chain has to keep.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Stat, lstat, makedev};
use rustix::io::Errno;

use crate::error::{Context, Result};
use crate::links::redirect;
use crate::nodes::{OPAQUE, WHITEOUT, xattr};

/// Layer directories, uppermost first.
#[derive(Clone, Debug)]
pub(crate) struct Stack {
    pub layers: Vec<PathBuf>,
}

/// A merged directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Dir {
    /// The directories it consists of: layer and path in it, uppermost first.
    pub parts: Vec<(usize, PathBuf)>,
    /// The path of the directory in the view of the layers below the stack that it is merged with. `None`: nothing of
    /// them shows through.
    pub below: Option<PathBuf>,
}

/// What a name in a merged directory stands for.
#[derive(Clone, Debug)]
pub(crate) enum Found {
    /// No layer of the stack says anything about it. With the path it may have below.
    Absent(Option<PathBuf>),
    /// It does not exist, whatever is below.
    Whiteout,
    /// A file that is not a directory.
    Node { layer: usize, path: PathBuf, stat: Stat },
    /// A directory; the metadata is that of its first part.
    Dir(Dir, Stat),
}

impl Stack {
    pub(crate) fn root(&self) -> Dir {
        self.root_from(0)
    }

    fn root_from(&self, layer: usize) -> Dir {
        let parts = (layer..self.layers.len())
            .map(|layer| (layer, PathBuf::new()))
            .collect();
        Dir {
            parts,
            below: Some(PathBuf::new()),
        }
    }

    /// The real path of a path in a layer.
    pub(crate) fn real(&self, layer: usize, path: &Path) -> PathBuf {
        match path.as_os_str().is_empty() {
            true => self.layers[layer].clone(),
            false => self.layers[layer].join(path),
        }
    }

    pub(crate) fn lookup(&self, dir: &Dir, name: &OsStr) -> Result<Found> {
        let mut name = name.to_os_string();
        let mut first = None;
        let mut parts = Vec::new();
        for (layer, path) in &dir.parts {
            let path = path.join(&name);
            let real = self.real(*layer, &path);
            let Some(stat) = stat_if_there(&real)? else {
                continue;
            };
            let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            if !is_dir {
                // Below a directory anything else ends the merging; on top it is what is seen.
                return Ok(match first {
                    Some(stat) => Found::Dir(Dir { parts, below: None }, stat),
                    None if is_whiteout(&real, &stat)? => Found::Whiteout,
                    None => Found::Node {
                        layer: *layer,
                        path,
                        stat,
                    },
                });
            }
            let top = *first.get_or_insert(stat);
            parts.push((*layer, path));
            if is_opaque(&real)? {
                return Ok(Found::Dir(Dir { parts, below: None }, top));
            }
            match redirect(&real)? {
                Some(target) if target.has_root() => {
                    let rest = self.resolve(layer + 1, &target)?;
                    parts.extend(rest.parts);
                    return Ok(Found::Dir(
                        Dir {
                            parts,
                            below: rest.below,
                        },
                        top,
                    ));
                }
                Some(target) => name = target.into_os_string(),
                None => {}
            }
        }
        let below = dir.below.as_ref().map(|below| below.join(&name));
        Ok(match first {
            Some(stat) => Found::Dir(Dir { parts, below }, stat),
            None => Found::Absent(below),
        })
    }

    /// The directory `path` in the view of the layers from `layer` on. Without parts where it is none.
    fn resolve(&self, layer: usize, path: &Path) -> Result<Dir> {
        let hidden = Dir {
            parts: Vec::new(),
            below: None,
        };
        let mut dir = self.root_from(layer);
        for part in path.components() {
            let Component::Normal(name) = part else { continue };
            dir = match self.lookup(&dir, name)? {
                Found::Dir(dir, _) => dir,
                Found::Absent(below) => Dir {
                    parts: Vec::new(),
                    below,
                },
                Found::Whiteout | Found::Node { .. } => hidden.clone(),
            };
        }
        Ok(dir)
    }

    /// What `path` stands for, with no symbolic link followed.
    pub(crate) fn find(&self, path: &Path) -> Result<Found> {
        let mut dir = self.root();
        let mut found = None;
        for part in path.components() {
            let Component::Normal(name) = part else { continue };
            match found.take() {
                None => {}
                Some(Found::Dir(next, _)) => dir = next,
                Some(other) => {
                    return Ok(Found::Absent(match other {
                        Found::Absent(below) => below,
                        _ => None,
                    }));
                }
            }
            found = Some(self.lookup(&dir, name)?);
        }
        match found {
            Some(found) => Ok(found),
            None => {
                let real = &self.layers[0];
                Ok(Found::Dir(dir, lstat(real).doing("reading", real)?))
            }
        }
    }

    /// Names in the parts of a directory that `which` selects, also those that are whiteouts.
    pub(crate) fn names(&self, dir: &Dir, which: impl Fn(usize) -> bool) -> Result<BTreeSet<OsString>> {
        let mut names = BTreeSet::new();
        for (layer, path) in dir.parts.iter().filter(|(layer, _)| which(*layer)) {
            let real = self.real(*layer, path);
            match fs::read_dir(&real) {
                Ok(entries) => {
                    for entry in entries {
                        names.insert(entry.doing("listing", &real)?.file_name());
                    }
                }
                // A live layer may lose it between two looks.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error).doing("listing", &real),
            }
        }
        Ok(names)
    }

    /// Everything in a directory, by name.
    pub(crate) fn list(&self, dir: &Dir) -> Result<Vec<(OsString, Found)>> {
        let names = self.names(dir, |_| true)?;
        names
            .into_iter()
            .map(|name| self.lookup(dir, &name).map(|found| (name, found)))
            .collect()
    }
}

pub(crate) fn stat_if_there(path: &Path) -> Result<Option<Stat>> {
    match lstat(path) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(error).doing("reading", path),
    }
}

fn is_whiteout(path: &Path, stat: &Stat) -> Result<bool> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::CharacterDevice => Ok(stat.st_rdev == makedev(0, 0)),
        FileType::RegularFile if stat.st_size == 0 => Ok(xattr(path, OsStr::new(WHITEOUT))
            .doing("reading an attribute of", path)?
            .is_some()),
        _ => Ok(false),
    }
}

fn is_opaque(path: &Path) -> Result<bool> {
    // The other value, "x", only tells that there may be whiteouts in the form of an attribute.
    Ok(xattr(path, OsStr::new(OPAQUE))
        .doing("reading an attribute of", path)?
        .as_deref()
        == Some(b"y"))
}
