//! The steps by which what is durable changes on disk: segments, contents, the catalog. All of them are taken here, so
//! that a test can end the daemon at each in turn, cut its power, or have the disk fail (`faults`, in debug builds).

#[cfg(debug_assertions)]
mod faults;
#[cfg(not(debug_assertions))]
mod faults {
    use std::fs::File;
    use std::io;
    use std::path::Path;

    /// Release builds take each step as it is.
    pub fn before() -> io::Result<()> {
        Ok(())
    }
    pub fn before_write(_: &File, _: &[u8], _: u64) -> io::Result<()> {
        Ok(())
    }
    pub fn before_length(_: &File, _: u64) -> io::Result<()> {
        Ok(())
    }
    pub fn synced(_: &File) {}
    pub fn renamed(_: &Path, _: &Path) {}
}

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

pub(crate) fn write_all_at(file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    faults::before_write(file, bytes, at)?;
    file.write_all_at(bytes, at)
}

pub(crate) fn set_len(file: &File, length: u64) -> io::Result<()> {
    faults::before_length(file, length)?;
    file.set_len(length)
}

/// Makes a file's content durable, or the names in a directory.
pub(crate) fn sync(file: &File) -> io::Result<()> {
    faults::before()?;
    file.sync_all()?;
    faults::synced(file);
    Ok(())
}

/// Makes a file's content durable, which changed nothing that does not belong to it.
pub(crate) fn sync_data(file: &File) -> io::Result<()> {
    faults::before()?;
    file.sync_data()?;
    faults::synced(file);
    Ok(())
}

pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    faults::before()?;
    fs::rename(from, to)?;
    faults::renamed(from, to);
    Ok(())
}

pub(crate) fn remove_file(path: &Path) -> io::Result<()> {
    faults::before()?;
    fs::remove_file(path)
}

pub(crate) fn remove_dir_all(path: &Path) -> io::Result<()> {
    faults::before()?;
    fs::remove_dir_all(path)
}

/// Before a step that is taken elsewhere.
pub(crate) fn other() -> io::Result<()> {
    faults::before()
}
