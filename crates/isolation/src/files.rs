//! Small files relative to directory descriptors, as procfs and cgroupfs have them.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, openat};

/// Largest file that is read: tables of procfs and cgroupfs are far smaller.
const SIZE_MAX: usize = 16 << 20;

/// Opens a directory below `dir`.
pub(crate) fn open_dir(dir: impl AsFd, path: &str) -> io::Result<OwnedFd> {
    Ok(openat(
        dir,
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

/// Reads a whole file as text.
pub(crate) fn read(dir: impl AsFd, path: &str) -> io::Result<String> {
    let file = openat(dir, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut content = vec![0; 4096];
    let mut filled = 0;
    loop {
        if filled == content.len() {
            if filled >= SIZE_MAX {
                return Err(io::Error::from_raw_os_error(libc::EFBIG));
            }
            content.resize(filled * 2, 0);
        }
        match rustix::io::read(&file, &mut content[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    content.truncate(filled);
    String::from_utf8(content).map_err(|_| io::Error::from_raw_os_error(libc::EILSEQ))
}

/// Writes a value in one call, as kernel interfaces want it. The file must exist.
pub(crate) fn write(dir: impl AsFd, path: &str, value: &str) -> io::Result<()> {
    let file = openat(dir, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, value.as_bytes())?;
    Ok(())
}
