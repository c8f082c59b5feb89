//! Where the content of files is on their filesystem's device (`FS_IOC_FIEMAP`), and giving back what is unused
//! (`FITRIM`).

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};

// include/uapi/linux/fs.h and fiemap.h
const FS_IOC_FIEMAP: u32 = 0xC020_660B;
const FITRIM: u32 = 0xC018_5879;
const FIEMAP_FLAG_SYNC: u32 = 1;
const FIEMAP_EXTENT_LAST: u32 = 0x1;
/// The address means nothing: the place is not decided yet, or the content lies within the metadata.
const NOWHERE: u32 = 0x2 | 0x4 | 0x200;
/// Extents asked for at a time.
const AT_ONCE: usize = 64;

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Extent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

#[repr(C)]
struct Request {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    reserved: u32,
    extents: [Extent; AT_ONCE],
}

/// The ranges of the device that hold the content of a file, in the order of the file. What the filesystem keeps with its
/// metadata is not among them. On btrfs addresses are those of the filesystem, whatever devices it is on.
///
/// # Errors
/// `EOPNOTSUPP` when the filesystem cannot tell, `EIO`.
pub fn extents(file: BorrowedFd<'_>) -> io::Result<Vec<Range<u64>>> {
    let mut found = Vec::new();
    let mut request = Request {
        start: 0,
        length: u64::MAX,
        flags: FIEMAP_FLAG_SYNC,
        mapped: 0,
        count: AT_ONCE as u32,
        reserved: 0,
        extents: [Extent::default(); AT_ONCE],
    };
    loop {
        // SAFETY: the request writes at most `count` extents behind the header, which is how many the structure has.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP.into(), &raw mut request) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        let mapped = &request.extents[..(request.mapped as usize).min(AT_ONCE)];
        for extent in mapped.iter().filter(|extent| extent.flags & NOWHERE == 0) {
            found.push(extent.physical..extent.physical.saturating_add(extent.length));
        }
        match mapped.last() {
            Some(last) if last.flags & FIEMAP_EXTENT_LAST == 0 => {
                request.start = last.logical.saturating_add(last.length);
                request.length = u64::MAX - request.start;
            }
            _ => return Ok(found),
        }
    }
}

/// Tells the device below the filesystem of the directory `inside` what is not used; returns how many bytes that are.
///
/// # Errors
/// `EOPNOTSUPP`, `ENOTTY` when the device or the filesystem has no use for it; `EPERM`.
pub fn trim(inside: BorrowedFd<'_>) -> io::Result<u64> {
    // struct fstrim_range: start, length, smallest range that is worth it.
    let mut range = [0u64, u64::MAX, 0];
    // SAFETY: the request reads and writes the three numbers of `struct fstrim_range`, which have the same layout.
    let result = unsafe { libc::ioctl(inside.as_raw_fd(), FITRIM.into(), range.as_mut_ptr()) };
    match result {
        0 => Ok(range[1]),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_file_is_where_its_bytes_are() {
        let mut file = tempfile::tempfile_in("/var/tmp").unwrap();
        file.write_all(&vec![7; 300_000]).unwrap();
        match extents(file.as_fd()) {
            Ok(found) => {
                let bytes: u64 = found.iter().map(|range| range.end - range.start).sum();
                assert!((300_000..400_000).contains(&bytes), "{found:?}");
            }
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP)),
        }
    }
}
