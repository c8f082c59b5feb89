//! Files with several names, across layers.
//!
//! With `index=on`, overlayfs keeps the names of a file together while it is mounted: when one name of a lower file is
//! first written to, the copy is also linked into the index directory, and the other names lead to it from there.
//! But a frozen layer has no index. So before a freeze each indexed file gets all its names in the writable layer,
//! by letting overlayfs copy the remaining ones up; then the names of a file are always in one layer.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, lremovexattr, openat2, statat,
    utimensat,
};
use rustix::io::Errno;

use crate::builder::Mounted;
use crate::error::{Context, Result};
use crate::links::LinkTable;
use crate::live::Base;
use crate::nodes::xattr;
use crate::store::Store;

const NLINK: &str = "trusted.overlay.nlink";
const ORIGIN: &str = "trusted.overlay.origin";

/// Bits of an inode number that overlayfs leaves alone: it takes the upper 32 for itself where all layers are on
/// filesystems with short inode numbers (ext4), and fewer otherwise.
const INODE_BITS: u64 = u32::MAX as u64;

/// A file of the index directory: a name of the copy in the writable layer.
struct Indexed {
    /// Inode number in the writable layer.
    ino: u64,
    /// Inode number of the lower file, if it could be told from the entry's name.
    origin: Option<u64>,
}

/// Gives every indexed file all its names in the writable layer. Costs nothing where no file with several names was
/// written to.
pub(crate) fn complete(mounted: &Mounted, store: &Store, base: &Base) -> Result<()> {
    let mut seen = HashSet::new();
    loop {
        // Copying names up may index more files: a path that leads to a file in one layer can lead to another
        // one above it.
        let mut todo = incomplete(&mounted.package.work())?;
        todo.retain(|file| seen.insert(file.ino));
        if todo.is_empty() {
            return Ok(());
        }
        gather(&todo, mounted, store, base)?;
    }
}

/// Whether [`complete`] has nothing to do.
pub(crate) fn is_complete(mounted: &Mounted) -> Result<bool> {
    Ok(incomplete(&mounted.package.work())?.is_empty())
}

fn gather(files: &[Indexed], mounted: &Mounted, store: &Store, base: &Base) -> Result<()> {
    let upper = mounted.package.fs();
    let mut above = vec![Arc::new(LinkTable::scan(&upper)?)];
    for layer in lowers(mounted, base) {
        let table = store.link_table(&layer)?;
        for file in files {
            for name in names_of(file, &table, &upper) {
                for path in visible(name, &above) {
                    copy_up(mounted, &upper, &path, file)?;
                }
            }
        }
        above.push(table);
    }
    Ok(())
}

fn lowers(mounted: &Mounted, base: &Base) -> impl Iterator<Item = PathBuf> {
    let volume = &mounted.package.volume;
    mounted
        .chain
        .iter()
        .map(|name| volume.layer_path(*name))
        .chain(base.layers.iter().cloned())
}

/// How many names a file of a writable layer or a snapshot of one has: its entry in the index is none.
pub(crate) fn names(path: &Path, stat: &Stat) -> u64 {
    let links = stat.st_nlink;
    if links < 2 {
        return links;
    }
    let relative = xattr(path, OsStr::new(NLINK)).ok().flatten();
    let relative = relative.and_then(|bytes| String::from_utf8(bytes).ok());
    let difference = relative.and_then(|text| text.strip_prefix('U')?.parse::<i64>().ok());
    links.saturating_add_signed(difference.unwrap_or(0))
}

/// Reads ahead what [`complete`] will need.
pub(crate) fn prepare(mounted: &Mounted, store: &Store, base: &Base) -> Result<()> {
    if is_complete(mounted)? {
        return Ok(());
    }
    for layer in lowers(mounted, base) {
        store.link_table(&layer)?;
    }
    Ok(())
}

/// Takes the index apart when its overlay is no longer used: the entries would count as names of their files.
pub(crate) fn forget(work: &Path) -> Result<()> {
    let index = work.join("index");
    for path in entries(&index)? {
        for name in [ORIGIN, NLINK] {
            match lremovexattr(&path, name) {
                Ok(()) | Err(Errno::NODATA) => {}
                Err(error) => return Err(error).doing("removing an attribute of", &path),
            }
        }
        fs::remove_file(&path).doing("removing", &path)?;
    }
    Ok(())
}

fn entries(index: &Path) -> Result<Vec<PathBuf>> {
    let listing = match fs::read_dir(index) {
        Ok(listing) => listing,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).doing("listing", index),
    };
    listing
        .map(|entry| Ok(entry.doing("listing", index)?.path()))
        .collect()
}

fn incomplete(work: &Path) -> Result<Vec<Indexed>> {
    let mut found = Vec::new();
    for path in entries(&work.join("index"))? {
        // Names that start so are overlayfs's own: files on their way, and a whiteout to make others from.
        if path
            .file_name()
            .is_some_and(|name| name.as_bytes().starts_with(b"#"))
        {
            continue;
        }
        let metadata = fs::symlink_metadata(&path).doing("reading", &path)?;
        if metadata.is_dir() {
            continue;
        }
        // The number of names, relative to the number of links of this inode ("U-1") or of the lower one ("L+0").
        // The index entry itself is a link but no name, so with "U-1" all names are here.
        let nlink = xattr(&path, OsStr::new(NLINK)).doing("reading an attribute of", &path)?;
        if nlink.as_deref() != Some(b"U-1") {
            let origin = path.file_name().and_then(origin_of);
            found.push(Indexed {
                ino: metadata.ino(),
                origin,
            });
        }
    }
    Ok(found)
}

/// The inode number in a file handle as overlayfs writes it: version 0, magic 0xfb, length, flags, type, UUID (16
/// bytes), and the handle of the filesystem, whose format depends on the type.
fn origin_of(name: &OsStr) -> Option<u64> {
    let hex = name.to_str()?;
    let bytes: Vec<u8> = (0..hex.len() / 2)
        .map(|at| u8::from_str_radix(hex.get(at * 2..at * 2 + 2)?, 16).ok())
        .collect::<Option<_>>()?;
    let handle = bytes.get(21..)?;
    let narrow = || Some(u64::from(u32::from_le_bytes(handle.get(..4)?.try_into().ok()?)));
    let wide = || Some(u64::from_le_bytes(handle.get(..8)?.try_into().ok()?));
    match bytes[4] {
        // FILEID_INO32_GEN (ext4 and others).
        0x01 => narrow(),
        // btrfs, and XFS with wide inode numbers.
        0x4d | 0x81 => wide(),
        _ => None,
    }
}

/// Names of the lower file that `file` is the copy of, in one layer.
fn names_of<'a>(file: &Indexed, table: &'a LinkTable, upper: &Path) -> Vec<&'a PathBuf> {
    match file.origin {
        Some(origin) => table.names.get(&origin).into_iter().flatten().collect(),
        // A kind of handle this program cannot read: the file is found by one of its names that was copied up.
        None => {
            let is_copied = |names: &&Vec<PathBuf>| {
                names.iter().any(|name| {
                    fs::symlink_metadata(upper.join(name)).is_ok_and(|metadata| metadata.ino() == file.ino)
                })
            };
            table.names.values().filter(is_copied).flatten().collect()
        }
    }
}

/// The paths under which a path of a layer may be visible above the given layers (uppermost first).
fn visible(name: &Path, above: &[Arc<LinkTable>]) -> Vec<PathBuf> {
    let mut paths = vec![name.to_path_buf()];
    for table in above.iter().rev() {
        paths = paths.iter().flat_map(|path| table.lift(path)).collect();
        paths.sort();
        paths.dedup();
    }
    paths
}

/// Copies the name `path` up, if it is there and is not yet. Setting the times that the file has already is the
/// smallest change that does it for every type of file.
fn copy_up(mounted: &Mounted, upper: &Path, path: &Path, file: &Indexed) -> Result<()> {
    if fs::symlink_metadata(upper.join(path)).is_ok_and(|metadata| metadata.ino() == file.ino) {
        return Ok(());
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(());
    };
    let parent = if parent.as_os_str().is_empty() {
        Path::new(".")
    } else {
        parent
    };
    // The sandbox decides what is in its tree: no link of it may lead out.
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = match openat2(mounted.mount.as_fd(), parent, flags, Mode::empty(), resolve) {
        Ok(dir) => dir,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => return Ok(()),
        Err(error) => return Err(error).doing("opening in the sandbox", parent),
    };
    let stat = match statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error).doing("reading in the sandbox", path),
    };
    let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    // An indexed file shows the inode number of the lower one, with the filesystem in the uppermost bits (xino).
    let is_other = |origin| (stat.st_ino ^ origin) & INODE_BITS != 0;
    if is_dir || file.origin.is_some_and(is_other) {
        return Ok(());
    }
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: stat.st_atime,
            tv_nsec: stat.st_atime_nsec as _,
        },
        last_modification: Timespec {
            tv_sec: stat.st_mtime,
            tv_nsec: stat.st_mtime_nsec as _,
        },
    };
    utimensat(&dir, name, &times, AtFlags::SYMLINK_NOFOLLOW).doing("copying up", path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inode_numbers_are_read_from_index_names() {
        let ext4 = "00fb1d0001c223a9ad43d544f09b3632afaa8740fd0e000000494f4494";
        assert_eq!(origin_of(OsStr::new(ext4)), Some(14));
        assert_eq!(origin_of(OsStr::new("00fb1d00")), None);
        assert_eq!(origin_of(OsStr::new("#7")), None);
    }
}
