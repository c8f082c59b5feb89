//! `mount_setattr(2)` (Linux 5.12): the one call of the new mount API that `rustix` does not offer.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use linux_raw_sys::general::{
    __NR_mount_setattr, AT_EMPTY_PATH, MOUNT_ATTR__ATIME, MOUNT_ATTR_IDMAP, MOUNT_ATTR_NOATIME,
    MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY, mount_attr,
};

/// What to change on one mount. Nothing is changed by default.
#[derive(Clone, Copy, Debug, Default)]
pub struct MountChange<'a> {
    pub read_only: bool,
    pub nosuid: bool,
    pub nodev: bool,
    pub noexec: bool,
    pub noatime: bool,
    /// Show the filesystem's owners through the id mapping of this user namespace. The mount must be detached and
    /// never have been attached (a fresh `open_tree(OPEN_TREE_CLONE)`), the filesystem must allow it
    /// (`FS_ALLOW_IDMAP`: ext4, XFS, btrfs, ... ), and the namespace must not be the initial one.
    pub idmap: Option<BorrowedFd<'a>>,
}

/// Changes the attributes of the mount that `mount` is the root of. Other mounts below it stay as they are.
///
/// # Errors
/// `EINVAL` when the filesystem cannot be idmapped or the mount is attached, `EPERM` without `CAP_SYS_ADMIN`,
/// `ENOSYS` before Linux 5.12 (see mount_setattr(2)).
pub fn change_mount(mount: BorrowedFd<'_>, change: MountChange<'_>) -> io::Result<()> {
    let mut set = 0u64;
    for (wanted, bit) in [
        (change.read_only, MOUNT_ATTR_RDONLY),
        (change.nosuid, MOUNT_ATTR_NOSUID),
        (change.nodev, MOUNT_ATTR_NODEV),
        (change.noexec, MOUNT_ATTR_NOEXEC),
        (change.noatime, MOUNT_ATTR_NOATIME),
        (change.idmap.is_some(), MOUNT_ATTR_IDMAP),
    ] {
        if wanted {
            set |= u64::from(bit);
        }
    }
    let attr = mount_attr {
        attr_set: set,
        // The access-time mode is a field, not a bit: it has to be cleared as a whole to be set.
        attr_clr: if change.noatime {
            u64::from(MOUNT_ATTR__ATIME)
        } else {
            0
        },
        propagation: 0,
        userns_fd: change.idmap.map_or(0, |fd| fd.as_raw_fd() as u64),
    };
    // SAFETY: the path is a NUL-terminated literal, `attr` lives across the call and its exact size is given; the
    // kernel only reads both.
    let result = unsafe {
        libc::syscall(
            i64::from(__NR_mount_setattr),
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            AT_EMPTY_PATH,
            &raw const attr,
            size_of::<mount_attr>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
