//! Putting single paths of another state into the live one.
//!
//! The target is a tree that the sandbox may be changing, so every step goes through a descriptor of the directory
//! it happens in, and no symbolic link of the sandbox is ever followed.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use deltabox_sys::fsids::with_file_owner;
use rustix::fs::{
    AtFlags, Dir as Listing, FileType, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2, renameat,
    statat, unlinkat,
};
use rustix::io::Errno;

use crate::copy::{Shift, copy_node, metadata};
use crate::error::{Context, Error, Result};
use crate::live::FileState;
use crate::stack::{Dir, Found, Stack};
use crate::view::{FileView, relative};

/// What became of a restored path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restored {
    /// It is as in the other state.
    Copied,
    /// It did not exist there, and does not exist any more.
    Removed,
}

const DIRECTORY: OFlags = OFlags::PATH
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

impl FileState {
    /// Makes `path` in the live state what it is in `from`, with all below it. Directories above it that are missing
    /// are made. A single file is replaced in one step; a directory is not, so the sandbox should stand still.
    ///
    /// # Errors
    /// [`Error::BadPath`] (the root, `..`, or a symbolic link or mount on the way), `ENOSPC` and other failed system
    /// calls; a directory may be restored in part then.
    pub fn restore_path(&self, from: &FileView, path: &Path) -> Result<Restored> {
        let path = relative(path)?;
        let Some(name) = path.file_name() else {
            return Err(Error::BadPath {
                path,
                why: "the root as a whole is restored by a rollback",
            });
        };
        // The maker of a file has to have a place in the id mapping of the layers.
        with_file_owner(self.first_id(), || self.restore(from, &path, name))
            .doing("taking the identity of the sandbox's root for", &path)?
    }

    fn restore(&self, from: &FileView, path: &Path, name: &OsStr) -> Result<Restored> {
        let found = from.stack.find(path)?;
        let restorer = Restorer {
            stack: &from.stack,
            shift: Shift(self.first_id()),
            shown: path,
        };
        let root = self.mount()?;
        let parent = path.parent().unwrap_or(Path::new(""));
        match found {
            Found::Absent(_) | Found::Whiteout => {
                if let Some(parent) = open_parent(root.as_fd(), parent)? {
                    restorer.remove(parent.as_fd(), name)?;
                }
                Ok(Restored::Removed)
            }
            found => {
                let parent = match open_parent(root.as_fd(), parent)? {
                    Some(parent) => parent,
                    None => restorer.make_parents(root, parent)?,
                };
                restorer.replace(parent.as_fd(), name, &found)?;
                Ok(Restored::Copied)
            }
        }
    }
}

/// Opens a directory of the sandbox, `None` when it does not exist.
fn open_parent(root: BorrowedFd<'_>, path: &Path) -> Result<Option<OwnedFd>> {
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let bad = |why| Error::BadPath {
        path: path.to_path_buf(),
        why,
    };
    match openat2(root, path, DIRECTORY, Mode::empty(), resolve) {
        Ok(dir) => Ok(Some(dir)),
        Err(Errno::NOENT) => Ok(None),
        Err(Errno::LOOP) => Err(bad("there is a symbolic link on the way")),
        Err(Errno::XDEV) => Err(bad("something is mounted on the way")),
        Err(Errno::NOTDIR) => Err(bad("there is a file or a symbolic link on the way")),
        Err(error) => Err(error).doing("opening in the sandbox", path),
    }
}

struct Restorer<'a> {
    stack: &'a Stack,
    shift: Shift,
    /// For messages.
    shown: &'a Path,
}

impl Restorer<'_> {
    /// A path that leads into an open directory. Only its last part is looked up in the sandbox's tree.
    fn inside(dir: BorrowedFd<'_>, name: &OsStr) -> PathBuf {
        PathBuf::from(format!("/proc/thread-self/fd/{}", dir.as_raw_fd())).join(name)
    }

    fn make_parents(&self, root: OwnedFd, path: &Path) -> Result<OwnedFd> {
        let mut dir = root;
        let mut so_far = PathBuf::new();
        for name in path.components() {
            so_far.push(name);
            dir = match openat(&dir, name.as_os_str(), DIRECTORY, Mode::empty()) {
                Ok(next) => next,
                Err(Errno::NOENT) => {
                    let found = self.stack.find(&so_far)?;
                    self.make_directory(dir.as_fd(), name.as_os_str(), &found)?
                }
                Err(error) => return Err(error).doing("opening in the sandbox", &so_far),
            };
        }
        Ok(dir)
    }

    /// Makes an empty directory like the one found.
    fn make_directory(&self, dir: BorrowedFd<'_>, name: &OsStr, found: &Found) -> Result<OwnedFd> {
        mkdirat(dir, name, Mode::RWXU).doing("creating in the sandbox", self.shown)?;
        if let Found::Dir(from, _) = found {
            self.finish_directory(&Self::inside(dir, name), from)?;
        }
        openat(dir, name, DIRECTORY, Mode::empty()).doing("opening in the sandbox", self.shown)
    }

    fn finish_directory(&self, to: &Path, from: &Dir) -> Result<()> {
        let (layer, path) = from.parts.first().expect("a directory is somewhere");
        let real = self.stack.real(*layer, path);
        let stat = rustix::fs::lstat(&real).doing("reading", &real)?;
        metadata(&real, &stat, self.shift)?.apply(to)
    }

    fn replace(&self, dir: BorrowedFd<'_>, name: &OsStr, found: &Found) -> Result<()> {
        match found {
            Found::Node { layer, path, stat } => {
                let draft = OsStr::new(".deltabox-restored");
                self.remove(dir, draft)?;
                copy_node(
                    &self.stack.real(*layer, path),
                    stat,
                    &Self::inside(dir, draft),
                    self.shift,
                )?;
                match renameat(dir, draft, dir, name) {
                    Ok(()) => Ok(()),
                    Err(Errno::ISDIR) => {
                        self.remove(dir, name)?;
                        renameat(dir, draft, dir, name).doing("replacing", self.shown)
                    }
                    Err(error) => Err(error).doing("replacing", self.shown),
                }
            }
            Found::Dir(from, _) => {
                self.remove(dir, name)?;
                let made = self.make_directory(dir, name, found)?;
                for (child, found) in self.stack.list(from)? {
                    self.replace(made.as_fd(), &child, &found)?;
                }
                // Again, because filling it changed its time.
                self.finish_directory(&Self::inside(dir, name), from)
            }
            Found::Absent(_) | Found::Whiteout => Ok(()),
        }
    }

    /// Removes whatever has the name, if anything.
    fn remove(&self, dir: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
        let stat = match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error).doing("reading in the sandbox", self.shown),
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return unlinkat(dir, name, AtFlags::empty()).doing("removing in the sandbox", self.shown);
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let inner = openat(dir, name, flags, Mode::empty()).doing("opening in the sandbox", self.shown)?;
        for entry in Listing::read_from(&inner).doing("listing in the sandbox", self.shown)? {
            let entry = entry.doing("listing in the sandbox", self.shown)?;
            let child: &OsStr = std::os::unix::ffi::OsStrExt::from_bytes(entry.file_name().to_bytes());
            if child != "." && child != ".." {
                self.remove(inner.as_fd(), child)?;
            }
        }
        unlinkat(dir, name, AtFlags::REMOVEDIR).doing("removing in the sandbox", self.shown)
    }
}
