//! Shared memory without a file, as a file.

use std::fs::File;
use std::io;

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// A new object as `MAP_SHARED | MAP_ANONYMOUS` makes it (mmap(2)), of `size` bytes, a multiple of the page size. It is
/// opened through `/proc/self/map_files`, which takes `CAP_CHECKPOINT_RESTORE` (proc(5)).
///
/// # Errors
/// Those of mmap(2) and open(2).
pub fn anonymous(size: usize) -> io::Result<File> {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice concerns no memory that is there.
    let start = unsafe { mmap_anonymous(std::ptr::null_mut(), size, protection, MapFlags::SHARED) }?;
    let from = start as usize;
    let path = format!("/proc/self/map_files/{from:x}-{:x}", from + size);
    let opened = File::options().read(true).write(true).open(path);
    // SAFETY: the mapping was made above, and nothing refers to it.
    unsafe { munmap(start, size) }?;
    opened
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::{FileExt, MetadataExt};

    #[test]
    fn an_object_is_what_anonymous_mappings_are() {
        let file = super::anonymous(3 << 12).unwrap();
        let name = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
        assert_eq!(name.to_str(), Some("/dev/zero (deleted)"));
        assert_eq!(file.metadata().unwrap().size(), 3 << 12);
        file.write_all_at(b"there", 4096).unwrap();
        assert!(super::anonymous(0).is_err());
    }
}
