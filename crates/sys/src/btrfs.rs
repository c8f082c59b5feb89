//! Subvolumes and snapshots of btrfs (`ioctl`s of `linux/btrfs.h`; all need `CAP_SYS_ADMIN` or ownership).

use std::ffi::OsStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, SystemTime};

use linux_raw_sys::btrfs::{
    BTRFS_SUBVOL_NAME_MAX, BTRFS_SUBVOL_RDONLY, btrfs_ioctl_get_subvol_info_args, btrfs_ioctl_vol_args_v2,
};
use linux_raw_sys::ioctl::{
    BTRFS_IOC_GET_SUBVOL_INFO, BTRFS_IOC_SNAP_CREATE_V2, BTRFS_IOC_SNAP_DESTROY_V2,
    BTRFS_IOC_SUBVOL_CREATE_V2,
};

/// What the kernel knows about a subvolume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubvolumeInfo {
    /// Number of the subvolume's tree, never used again on this filesystem.
    pub id: u64,
    /// Transaction in which the tree was last written.
    pub generation: u64,
    /// Transaction in which an inode of it was last changed (counted when the change is made, not when written).
    pub changed_in: u64,
    /// Transaction in which it was created. For a snapshot: all changes of its source in later transactions are not
    /// in it.
    pub created_in: u64,
    /// Whether it refuses writes.
    pub read_only: bool,
    /// When it was created.
    pub created: SystemTime,
}

/// Creates the empty subvolume `name` in the directory `parent`.
///
/// # Errors
/// `EEXIST`, `ENOSPC`, `EROFS`; `ENOTTY` when `parent` is not on btrfs; `ENAMETOOLONG`.
pub fn create_subvolume(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    name_ioctl(parent, BTRFS_IOC_SUBVOL_CREATE_V2, name, -1, 0)
}

/// Creates `name` in `parent` as a snapshot of the subvolume that `source` is open on (its root directory).
///
/// Data that was written to `source` before the call is in it, also if it was only in the page cache. The call
/// returns after the transaction that holds the snapshot was committed.
///
/// # Errors
/// As [`create_subvolume`]; `EXDEV` when the two are not on one filesystem; `EINVAL` when `source` is not the root
/// of a subvolume; `ETXTBSY` when it holds an active swap file.
pub fn create_snapshot(
    parent: BorrowedFd<'_>,
    name: &OsStr,
    source: BorrowedFd<'_>,
    read_only: bool,
) -> io::Result<()> {
    let flags = if read_only {
        u64::from(BTRFS_SUBVOL_RDONLY)
    } else {
        0
    };
    name_ioctl(
        parent,
        BTRFS_IOC_SNAP_CREATE_V2,
        name,
        i64::from(source.as_raw_fd()),
        flags,
    )
}

/// Removes the subvolume `name` of the directory `parent`, with all its content. The space is given back in the
/// background by the filesystem.
///
/// # Errors
/// `ENOENT`, `EBUSY` when it is a mount point somewhere, `ENOTEMPTY` when it holds another subvolume.
pub fn delete_subvolume(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    name_ioctl(parent, BTRFS_IOC_SNAP_DESTROY_V2, name, 0, 0)
}

/// Writes everything to disk and wakes the thread that gives the space of deleted subvolumes back, which otherwise
/// looks only every 30 seconds.
///
/// # Errors
/// `ENOTTY` when `inside` is not on btrfs, `EIO`, `ENOSPC`.
pub fn sync_and_reclaim(inside: BorrowedFd<'_>) -> io::Result<()> {
    // BTRFS_IOC_SYNC of linux/btrfs.h: _IO(0x94, 8).
    const SYNC: u32 = 0x9408;
    // SAFETY: the request takes no argument.
    let result = unsafe { libc::ioctl(inside.as_raw_fd(), SYNC.into()) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Asks about the subvolume in which the file `inside` lies.
///
/// # Errors
/// `ENOTTY` when `inside` is not on btrfs.
pub fn subvolume_info(inside: BorrowedFd<'_>) -> io::Result<SubvolumeInfo> {
    let mut args = MaybeUninit::<btrfs_ioctl_get_subvol_info_args>::zeroed();
    // SAFETY: the request writes at most one `btrfs_ioctl_get_subvol_info_args` to the pointer, which is valid for
    // that size.
    let result = unsafe {
        libc::ioctl(
            inside.as_raw_fd(),
            BTRFS_IOC_GET_SUBVOL_INFO.into(),
            args.as_mut_ptr(),
        )
    };
    // A positive result is success too: what the search for the name of the subvolume happened to return.
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the struct consists of integers only, for which the zeroes it was filled with are valid too.
    let args = unsafe { args.assume_init() };
    Ok(SubvolumeInfo {
        id: args.treeid,
        generation: args.generation,
        changed_in: args.ctransid,
        created_in: args.otransid,
        // BTRFS_ROOT_SUBVOL_RDONLY of linux/btrfs_tree.h.
        read_only: args.flags & 1 != 0,
        created: SystemTime::UNIX_EPOCH + Duration::new(args.otime.sec, args.otime.nsec),
    })
}

fn name_ioctl(parent: BorrowedFd<'_>, request: u32, name: &OsStr, fd: i64, flags: u64) -> io::Result<()> {
    let bytes = name.as_bytes();
    if bytes.is_empty() || bytes.contains(&b'/') || bytes.contains(&0) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    if bytes.len() > BTRFS_SUBVOL_NAME_MAX as usize {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    // SAFETY: the struct consists of integers, unions of integers and one pointer, for all of which zero is valid.
    let mut args: btrfs_ioctl_vol_args_v2 = unsafe { MaybeUninit::zeroed().assume_init() };
    args.fd = fd;
    args.flags = flags;
    // SAFETY: `name` is the member of the union that all requests of this function use; every bit pattern is valid.
    let field = unsafe { &mut args.__bindgen_anon_2.name };
    for (to, from) in field.iter_mut().zip(bytes) {
        *to = *from as _;
    }
    // SAFETY: all these requests read one `btrfs_ioctl_vol_args_v2`, whose name ends with a NUL (the array is one
    // longer than the longest name and was zeroed), and write at most the same struct.
    let result = unsafe { libc::ioctl(parent.as_raw_fd(), request.into(), &raw mut args) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    #[test]
    fn names_that_are_paths_are_refused() {
        let dir = File::open("/").unwrap();
        for name in ["", "a/b", "a\0b"] {
            let error = create_subvolume(dir.as_fd(), OsStr::new(name)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
    }

    #[test]
    fn other_filesystems_say_so() {
        let dir = File::open("/proc").unwrap();
        let error = subvolume_info(dir.as_fd()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTTY));
    }
}
