//! What the store's filesystem can do, found out by doing it.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::Path;

use deltabox_sys::btrfs;
use rustix::fs::{fstatfs, ioctl_ficlone};

use crate::error::{Context, Result};

/// Abilities of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Features {
    /// Name of the filesystem the layers are on.
    pub filesystem: String,
    /// Whether the store lives in an image file of its own (loop-mounted) rather than in the state directory.
    pub image: bool,
    /// Files can share data blocks: copying a file up costs the same whatever its size.
    pub reflink: bool,
    /// Files can be frozen while programs hold on to them.
    pub snapshots: bool,
    /// What is lost compared with a btrfs store, one sentence each.
    pub lost: Vec<String>,
}

const BTRFS_SUPER_MAGIC: i64 = 0x9123_683e;
const XFS_SUPER_MAGIC: i64 = 0x5846_5342;
const EXT4_SUPER_MAGIC: i64 = 0xef53;
const TMPFS_MAGIC: i64 = 0x0102_1994;
const OVERLAYFS_SUPER_MAGIC: i64 = 0x794c_7630;

/// Name of the filesystem that `path` is on.
pub(crate) fn filesystem_of(path: &Path) -> Result<String> {
    let dir = File::open(path).doing("opening", path)?;
    #[allow(clippy::unnecessary_cast)]
    let magic = fstatfs(&dir).doing("asking for the filesystem of", path)?.f_type as i64;
    Ok(match magic {
        BTRFS_SUPER_MAGIC => "btrfs".into(),
        XFS_SUPER_MAGIC => "xfs".into(),
        EXT4_SUPER_MAGIC => "ext4".into(),
        TMPFS_MAGIC => "tmpfs".into(),
        OVERLAYFS_SUPER_MAGIC => "overlay".into(),
        other => format!("filesystem type {other:#x}"),
    })
}

/// Tries each ability in a scratch directory of `root`.
pub(crate) fn probe(root: &Path, image: bool) -> Result<Features> {
    let scratch = root.join(format!("probe.{}", std::process::id()));
    fs::create_dir_all(&scratch).doing("creating", &scratch)?;
    let reflink = can_reflink(&scratch);
    let snapshots = can_snapshot(&scratch);
    fs::remove_dir_all(&scratch).doing("removing", &scratch)?;
    let filesystem = filesystem_of(root)?;
    let mut lost = Vec::new();
    if !reflink {
        lost.push(format!(
            "{filesystem} has no reflink: the first write to a file of an older state copies the whole file, and \
             merged layers take space of their own"
        ));
    }
    if !snapshots {
        lost.push(format!(
            "{filesystem} has no snapshots: a state cannot be frozen while a program is tied to its files (sockets \
             in the tree, watches, locks, shared mappings, files open for writing)"
        ));
    }
    Ok(Features {
        filesystem,
        image,
        reflink,
        snapshots,
        lost,
    })
}

fn can_reflink(scratch: &Path) -> bool {
    let attempt = || -> std::io::Result<()> {
        let from = scratch.join("from");
        fs::write(&from, vec![1u8; 65536])?;
        let to = File::create(scratch.join("to"))?;
        ioctl_ficlone(&to, File::open(&from)?)?;
        Ok(())
    };
    attempt().is_ok()
}

fn can_snapshot(scratch: &Path) -> bool {
    let (one, two) = (OsStr::new("one"), OsStr::new("two"));
    let attempt = || -> std::io::Result<()> {
        let dir = File::open(scratch)?;
        btrfs::create_subvolume(dir.as_fd(), one)?;
        let source = File::open(scratch.join(one))?;
        let made = btrfs::create_snapshot(dir.as_fd(), two, source.as_fd(), true);
        if made.is_ok() {
            btrfs::delete_subvolume(dir.as_fd(), two)?;
        }
        drop(source);
        btrfs::delete_subvolume(dir.as_fd(), one)?;
        made
    };
    attempt().is_ok()
}
