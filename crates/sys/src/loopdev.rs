//! Loop devices: a file as a block device (loop(4); `LOOP_CONFIGURE` since Linux 5.8).

use std::fs::{File, OpenOptions};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use linux_raw_sys::loop_device::loop_config;

// include/uapi/linux/loop.h
const LOOP_CONFIGURE: u32 = 0x4C0A;
const LOOP_CTL_GET_FREE: u32 = 0x4C82;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;
/// How often another process may snatch the free device between asking for it and taking it.
const ATTEMPTS_MAX: u32 = 64;

/// A configured loop device. It disappears by itself once nothing has it open or mounted any more
/// (`LO_FLAGS_AUTOCLEAR`), so dropping this after mounting it is right, and a crash leaves nothing behind.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
    _file: File,
}

impl LoopDevice {
    /// Path of the block device.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Makes `backing` (open for reading and writing) a block device of `block_size` bytes per sector (0: the default).
/// With `direct`, the device reads and writes the file past the page cache.
///
/// # Errors
/// `ENOENT`/`ENXIO` when the kernel has no loop driver, `EPERM` without `CAP_SYS_ADMIN`, `EINVAL` when the backing
/// filesystem does not fit `direct` or `block_size`, `EBUSY` when all devices were taken again and again.
pub fn attach(backing: BorrowedFd<'_>, block_size: u32, direct: bool) -> io::Result<LoopDevice> {
    let control = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/loop-control")?;
    for _ in 0..ATTEMPTS_MAX {
        // SAFETY: the request takes no argument and returns a device number.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE.into()) };
        if number < 0 {
            return Err(io::Error::last_os_error());
        }
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        match configure(&file, backing, block_size, direct) {
            Ok(()) => return Ok(LoopDevice { path, _file: file }),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::from_raw_os_error(libc::EBUSY))
}

fn configure(device: &File, backing: BorrowedFd<'_>, block_size: u32, direct: bool) -> io::Result<()> {
    // SAFETY: the struct consists of integers and arrays of integers only, for which zero is valid.
    let mut config: loop_config = unsafe { MaybeUninit::zeroed().assume_init() };
    config.fd = backing.as_raw_fd() as u32;
    config.block_size = block_size;
    config.info.lo_flags = LO_FLAGS_AUTOCLEAR | if direct { LO_FLAGS_DIRECT_IO } else { 0 };
    // SAFETY: the request reads one `loop_config`, to which the pointer is valid.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE.into(), &raw const config) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;

    #[test]
    fn a_file_becomes_a_device_and_vanishes_when_closed() {
        let mut backing = tempfile::tempfile().unwrap();
        let content = vec![0x5a; 1 << 20];
        backing.write_all(&content).unwrap();
        backing.sync_all().unwrap();
        let device = attach(backing.as_fd(), 0, false).unwrap();
        let mut seen = Vec::new();
        File::open(device.path()).unwrap().read_to_end(&mut seen).unwrap();
        assert!(seen == content);
    }
}
