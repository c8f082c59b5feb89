//! Finding the path of a file of which only the inode number is known: one that was opened by a name that is gone
//! while another hard link remains, or one that inotify watches.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir};
use rustix::io::Errno;

use super::live::statx;

/// How many directory entries are looked at before the search is given up.
const ENTRIES_MAX: usize = 4_000_000;

/// The path (from `root`, with a leading `/`) of a file on the mount of `root` with this inode number.
///
/// # Errors
/// When a directory cannot be read. Finding nothing is not an error.
pub(super) fn by_inode(root: BorrowedFd<'_>, ino: u64) -> Result<Option<Vec<u8>>, Errno> {
    let top = statx(root, "", AtFlags::EMPTY_PATH)?;
    if top.stx_ino == ino {
        return Ok(Some(b"/".to_vec()));
    }
    let mut pending = vec![Vec::new()];
    let mut seen = 0;
    while let Some(directory) = pending.pop() {
        let path: &[u8] = if directory.is_empty() {
            b"."
        } else {
            &directory[1..]
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = match rustix::fs::openat(root, path, flags, Mode::empty()) {
            Ok(dir) => dir,
            Err(Errno::NOENT | Errno::ACCESS) => continue,
            Err(e) => return Err(e),
        };
        if statx(dir.as_fd(), "", AtFlags::EMPTY_PATH)?.stx_mnt_id != top.stx_mnt_id {
            continue;
        }
        let mut buffer = vec![MaybeUninit::<u8>::uninit(); 32 * 1024];
        let mut entries = RawDir::new(&dir, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            seen += 1;
            if seen > ENTRIES_MAX {
                return Ok(None);
            }
            let child = || [&directory[..], b"/", name].concat();
            if entry.ino() == ino {
                return Ok(Some(child()));
            }
            if entry.file_type() == FileType::Directory {
                pending.push(child());
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hard_link_is_found_by_its_inode() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        std::fs::write(dir.path().join("a/b/file"), "x").unwrap();
        std::fs::write(dir.path().join("other"), "x").unwrap();
        let ino = std::fs::metadata(dir.path().join("a/b/file")).unwrap().ino();
        let root = std::fs::File::open(dir.path()).unwrap();
        assert_eq!(by_inode(root.as_fd(), ino).unwrap().unwrap(), b"/a/b/file");
        assert_eq!(by_inode(root.as_fd(), u64::MAX).unwrap(), None);
    }
}
