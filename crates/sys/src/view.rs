//! Looking into files without a trace.

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::process_vm;

/// Part of a file in our memory. Nobody who watches the file (inotify, fanotify) hears of it, other than by a read.
#[derive(Debug)]
pub struct View {
    start: NonNull<std::ffi::c_void>,
    size: usize,
}

impl View {
    /// Shows `size` bytes at `offset`, a multiple of the page size, of a file that is open for reading.
    ///
    /// # Errors
    /// Those of mmap(2); not every file can be mapped.
    pub fn of(file: BorrowedFd<'_>, offset: u64, size: usize) -> io::Result<View> {
        // SAFETY: the kernel chooses the place, so no memory that is in use is replaced.
        let start = unsafe {
            mmap(
                std::ptr::null_mut(),
                size,
                ProtFlags::READ,
                MapFlags::SHARED,
                file,
                offset,
            )
        }?;
        let start = NonNull::new(start).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(View { start, size })
    }

    /// Copies the first bytes.
    ///
    /// # Errors
    /// `EFAULT` where the file has become shorter, or cannot be read.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<()> {
        let size = buffer.len().min(self.size);
        // Not by touching the mapping: others may cut the file short at any time.
        let address = self.start.as_ptr() as u64;
        process_vm::read_exact(rustix::process::getpid(), address, &mut buffer[..size])
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nothing refers to its memory.
        let _ = unsafe { munmap(self.start.as_ptr(), self.size) };
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_view_shows_the_file_and_survives_its_end() {
        let path = std::env::temp_dir().join(format!("deltabox-view-{}", std::process::id()));
        let mut file = std::fs::File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .unwrap();
        std::fs::remove_file(&path).unwrap();
        file.write_all(&[7; 5000]).unwrap();
        let view = View::of(file.as_fd(), 4096, 904).unwrap();
        let mut bytes = [0; 904];
        view.read(&mut bytes).unwrap();
        assert_eq!(bytes, [7; 904]);
        file.set_len(0).unwrap();
        assert!(view.read(&mut bytes).is_err());
    }
}
