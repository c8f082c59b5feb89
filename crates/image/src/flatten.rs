//! Layers merged into one plain directory, by moving what is visible up into the top layer.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType};

use crate::error::{Error, Result};
use crate::root;
use crate::staging::open_dir;

/// Moves into `top` what `lower` (top first) shows through it, and removes the marks that only mean
/// something between layers. What is hidden stays behind in the lower directories.
pub(crate) fn merge(top: &Path, lower: &[PathBuf]) -> Result<()> {
    let failed = |e: rustix::io::Errno| Error::io("merge layers in", top)(e.into());
    let root = open_dir(top)?;
    let time = mtime(&root).map_err(failed)?;
    for layer in lower {
        merge_dir(&root, &open_dir(layer)?).map_err(failed)?;
    }
    strip(&root).map_err(failed)?;
    root::set_mtime(&root, b"", time).map_err(failed)
}

fn merge_dir(upper: &OwnedFd, lower: &OwnedFd) -> rustix::io::Result<()> {
    if root::is_opaque(upper)? {
        return Ok(());
    }
    let hides_all = root::is_opaque(lower)?;
    for name in root::children(lower)? {
        match root::look(upper, &name)? {
            None => move_up(upper, lower, &name)?,
            Some(above) if root::kind(&above) == FileType::Directory => {
                let below = root::look(lower, &name)?;
                let below = below.filter(|stat| root::kind(stat) == FileType::Directory);
                let dir = root::open_dir(upper, &name)?;
                let time = mtime(&dir)?;
                match below {
                    Some(_) => merge_dir(&dir, &root::open_dir(lower, &name)?)?,
                    // A file or whiteout between two directories of the same name keeps them apart.
                    None => root::set_opaque(&dir)?,
                }
                root::set_mtime(&dir, b"", time)?;
            }
            Some(_) => {}
        }
    }
    if hides_all {
        root::set_opaque(upper)
    } else {
        Ok(())
    }
}

/// Renaming changes the times of both directories, and of a moved directory nothing.
fn move_up(upper: &OwnedFd, lower: &OwnedFd, name: &[u8]) -> rustix::io::Result<()> {
    rustix::fs::renameat(lower, name, upper, name)
}

/// Removes whiteouts and opaque marks.
fn strip(dir: &OwnedFd) -> rustix::io::Result<()> {
    let time = mtime(dir)?;
    match rustix::fs::fremovexattr(dir, root::OPAQUE) {
        Ok(()) | Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP) => {}
        Err(e) => return Err(e),
    }
    for name in root::children(dir)? {
        match root::look(dir, &name)? {
            Some(stat) if root::is_whiteout(&stat) => rustix::fs::unlinkat(dir, &name[..], AtFlags::empty())?,
            Some(stat) if root::kind(&stat) == FileType::Directory => strip(&root::open_dir(dir, &name)?)?,
            _ => {}
        }
    }
    root::set_mtime(dir, b"", time)
}

fn mtime(dir: &OwnedFd) -> rustix::io::Result<i128> {
    let stat = rustix::fs::fstat(dir)?;
    Ok(i128::from(stat.st_mtime) * 1_000_000_000 + i128::from(stat.st_mtime_nsec))
}
