//! Looking at a state's files without mounting it.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustix::fs::{FileType, OFlags, Stat};

use crate::error::{Context, Error, Result};
use crate::hardlinks;
use crate::ids::LayerId;
use crate::live::{Base, FileState};
use crate::stack::{Dir, Found, Stack};
use crate::store::{Claim, Claimed, Store};
use crate::tree::LayerName;
use crate::volume::{Frozen, Top, Volume};

/// Type of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    File,
    Directory,
    Symlink,
    Fifo,
    Socket,
    CharacterDevice,
    BlockDevice,
}

/// A file as a state shows it. Owner ids are the sandbox's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub kind: EntryKind,
    /// Permission, set-id and sticky bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Bytes of content; 0 for directories.
    pub size: u64,
    /// Seconds and nanoseconds since 1970.
    pub mtime: (i64, u32),
    /// For devices.
    pub device: u64,
    /// Number of names.
    pub names: u64,
    /// The same for all names of a file, within one walk or comparison.
    pub file_id: (usize, u64),
    /// Where the content is on the host, to be read only.
    pub real: PathBuf,
}

impl Entry {
    pub(crate) fn new(stack: &Stack, layer: usize, path: &Path, stat: &Stat) -> Self {
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => EntryKind::Directory,
            FileType::Symlink => EntryKind::Symlink,
            FileType::Fifo => EntryKind::Fifo,
            FileType::Socket => EntryKind::Socket,
            FileType::CharacterDevice => EntryKind::CharacterDevice,
            FileType::BlockDevice => EntryKind::BlockDevice,
            _ => EntryKind::File,
        };
        let is_dir = kind == EntryKind::Directory;
        Self {
            kind,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: if is_dir { 0 } else { stat.st_size as u64 },
            mtime: (stat.st_mtime, stat.st_mtime_nsec as u32),
            device: stat.st_rdev,
            names: if is_dir {
                1
            } else {
                hardlinks::names(&stack.real(layer, path), stat)
            },
            file_id: (layer, stat.st_ino),
            real: stack.real(layer, path),
        }
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// The file is none, or is gone.
    pub fn target(&self) -> Result<PathBuf> {
        fs::read_link(&self.real).doing("reading", &self.real)
    }

    /// The extended attributes that are the file's own (ACLs and capabilities are among them), sorted by name.
    ///
    /// # Errors
    /// The file is gone.
    pub fn xattrs(&self) -> Result<Vec<(std::ffi::OsString, Vec<u8>)>> {
        crate::nodes::own_xattrs(&self.real).doing("reading the attributes of", &self.real)
    }

    /// The content of a regular file.
    ///
    /// # Errors
    /// The file is of another type, or is gone.
    pub fn open(&self) -> Result<File> {
        if self.kind != EntryKind::File {
            return Err(Error::BadPath {
                path: self.real.clone(),
                why: "it is not a regular file",
            });
        }
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
        OpenOptions::new()
            .read(true)
            .custom_flags(flags)
            .open(&self.real)
            .doing("opening", &self.real)
    }
}

/// A state to look at. While it exists, its layers stay in the store.
#[derive(Debug)]
pub struct FileView {
    /// The uppermost layer, if it is not one of the volume's frozen ones.
    pub(crate) own: Option<PathBuf>,
    pub(crate) volume: Arc<Volume>,
    pub(crate) parent: Option<LayerId>,
    pub(crate) base: Vec<PathBuf>,
    /// When the state was frozen, if `own` is a snapshot's.
    pub(crate) taken: Option<SystemTime>,
    pub(crate) stack: Stack,
    _claim: Claim,
}

impl Store {
    /// A frozen state on `base`.
    ///
    /// # Errors
    /// [`Error::Missing`].
    pub fn view(&self, base: &Base, frozen: &Frozen) -> Result<FileView> {
        let missing = |_| Error::Missing(frozen.to_string());
        let volume = self.volume(frozen.volume).map_err(missing)?;
        match frozen.top {
            Top::Base => FileView::build(self, volume, None, None, base),
            Top::Layer(id) => FileView::build(self, volume, None, Some(id), base),
            Top::Snapshot(id) => {
                let Some(LayerName::Plain { id, parent }) = volume.find_package(id)? else {
                    return Err(Error::Missing(frozen.to_string()));
                };
                let taken = volume.info()?.created;
                let name = LayerName::Plain { id, parent };
                let own = volume.path.join("upper").join(name.to_string()).join("fs");
                let mut view = FileView::build(self, volume, Some(own), parent, base)?;
                view.taken = Some(taken);
                Ok(view)
            }
        }
    }
}

impl FileState {
    /// The live state. What the sandbox does meanwhile may be seen in part.
    ///
    /// # Errors
    /// Failed system calls.
    pub fn view(&self) -> Result<FileView> {
        let package = &self.live.package;
        FileView::build(
            &self.store,
            Arc::clone(&package.volume),
            Some(package.fs()),
            package.parent,
            &self.base,
        )
    }
}

impl FileView {
    fn build(
        store: &Store,
        volume: Arc<Volume>,
        own: Option<PathBuf>,
        parent: Option<LayerId>,
        base: &Base,
    ) -> Result<Self> {
        let _gate = store
            .0
            .gate
            .read()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let missing = || Error::Missing(format!("a layer of volume {}", volume.id));
        let chain = volume.chain(parent).ok_or_else(missing)?;
        // The plain layers too: comparing uses whichever chain has more in common with the other side's.
        let mut layers = chain.clone();
        layers.extend(volume.plain_chain(parent).unwrap_or_default());
        let claim = store.claim(Claimed {
            volume: volume.id,
            layers,
            package: None,
        });
        let frozen = chain.iter().map(|name| volume.layer_path(*name));
        let stack = Stack {
            layers: own
                .clone()
                .into_iter()
                .chain(frozen)
                .chain(base.layers.clone())
                .collect(),
        };
        Ok(Self {
            own,
            parent,
            base: base.layers.clone(),
            taken: None,
            stack,
            _claim: claim,
            volume,
        })
    }

    /// What `path` is; no symbolic link is followed. `None` when it does not exist.
    ///
    /// # Errors
    /// [`Error::BadPath`], failed system calls.
    pub fn entry(&self, path: &Path) -> Result<Option<Entry>> {
        Ok(match self.stack.find(&relative(path)?)? {
            Found::Node { layer, path, stat } => Some(Entry::new(&self.stack, layer, &path, &stat)),
            Found::Dir(dir, stat) => Some(self.directory(&dir, &stat)),
            Found::Absent(_) | Found::Whiteout => None,
        })
    }

    fn directory(&self, dir: &Dir, stat: &Stat) -> Entry {
        let (layer, path) = dir.parts.first().expect("a directory is somewhere");
        Entry::new(&self.stack, *layer, path, stat)
    }

    /// Calls `visit` with every path (relative to the root; empty for the root itself) and file, directories before
    /// what they hold.
    ///
    /// # Errors
    /// Failed system calls, and what `visit` returns.
    pub fn walk(&self, visit: &mut dyn FnMut(&Path, &Entry) -> Result<()>) -> Result<()> {
        let Found::Dir(root, stat) = self.stack.find(Path::new(""))? else {
            return Err(Error::Missing("the root".into()));
        };
        visit(Path::new(""), &self.directory(&root, &stat))?;
        let mut pending = vec![(PathBuf::new(), root)];
        while let Some((path, dir)) = pending.pop() {
            for (name, found) in self.stack.list(&dir)? {
                let path = path.join(name);
                match found {
                    Found::Node {
                        layer,
                        path: from,
                        stat,
                    } => {
                        visit(&path, &Entry::new(&self.stack, layer, &from, &stat))?;
                    }
                    Found::Dir(child, stat) => {
                        visit(&path, &self.directory(&child, &stat))?;
                        pending.push((path, child));
                    }
                    Found::Absent(_) | Found::Whiteout => {}
                }
            }
        }
        Ok(())
    }
}

/// A path of the sandbox as relative to its root.
pub(crate) fn relative(path: &Path) -> Result<PathBuf> {
    let mut result = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => result.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(Error::BadPath {
                    path: path.to_path_buf(),
                    why: "it has .. in it",
                });
            }
        }
    }
    Ok(result)
}
