//! Copying single files with everything that belongs to them.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, SeekFrom, Stat, copy_file_range, ioctl_ficlone, mknodat, seek};
use rustix::io::Errno;

use crate::error::{Context, Result};
use crate::nodes::{Metadata, own_xattrs};

/// Adds to owner ids on their way from a layer to a mount, where they are shown mapped.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Shift(pub u32);

impl Shift {
    fn apply(self, mut metadata: Metadata) -> Metadata {
        metadata.uid = metadata.uid.saturating_add(self.0);
        metadata.gid = metadata.gid.saturating_add(self.0);
        for (name, value) in &mut metadata.xattrs {
            if name.as_encoded_bytes().starts_with(b"system.posix_acl_") {
                self.apply_to_acl(value);
            }
        }
        metadata
    }

    /// Named users and groups of an ACL: after a version (4 bytes), entries of tag (2 bytes), permissions (2 bytes) and
    /// id (4 bytes), see linux/posix_acl_xattr.h.
    fn apply_to_acl(self, value: &mut [u8]) {
        const ACL_USER: u16 = 2;
        const ACL_GROUP: u16 = 8;
        for entry in value.get_mut(4..).unwrap_or_default().chunks_exact_mut(8) {
            let tag = u16::from_le_bytes([entry[0], entry[1]]);
            if tag == ACL_USER || tag == ACL_GROUP {
                let id = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
                entry[4..].copy_from_slice(&id.saturating_add(self.0).to_le_bytes());
            }
        }
    }
}

/// The metadata of a file of a layer.
pub(crate) fn metadata(from: &Path, stat: &Stat, shift: Shift) -> Result<Metadata> {
    let xattrs = own_xattrs(from).doing("reading the attributes of", from)?;
    Ok(shift.apply(Metadata::new(stat, xattrs)))
}

/// Makes `to`, which does not exist, a copy of `from`, which is no directory. Data is shared where the filesystem can;
/// holes stay holes.
pub(crate) fn copy_node(from: &Path, stat: &Stat, to: &Path, shift: Shift) -> Result<()> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => copy_data(from, stat, to)?,
        FileType::Symlink => {
            let target = fs::read_link(from).doing("reading", from)?;
            symlink(target, to).doing("linking", to)?;
        }
        kind => mknodat(CWD, to, kind, Mode::RUSR | Mode::WUSR, stat.st_rdev).doing("creating", to)?,
    }
    metadata(from, stat, shift)?.apply(to)
}

fn copy_data(from: &Path, stat: &Stat, to: &Path) -> Result<()> {
    let source = OpenOptions::new()
        .read(true)
        .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32)
        .open(from)
        .doing("opening", from)?;
    let target = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to)
        .doing("creating", to)?;
    if stat.st_size == 0 || ioctl_ficlone(&target, &source).is_ok() {
        return Ok(());
    }
    let size = stat.st_size as u64;
    target.set_len(size).doing("sizing", to)?;
    copy_extents(&source, &target, size).doing("copying", from)
}

/// Copies what is not a hole.
fn copy_extents(source: &File, target: &File, size: u64) -> io::Result<()> {
    let mut at = 0;
    while at < size {
        let start = match seek(source, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = seek(source, SeekFrom::Hole(start))?.min(size);
        copy_range(source, target, start, end)?;
        at = end;
    }
    Ok(())
}

fn copy_range(source: &File, target: &File, start: u64, end: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let (mut from, mut to) = (start, start);
    while from < end {
        let wanted = (end - from) as usize;
        match copy_file_range(source, Some(&mut from), target, Some(&mut to), wanted) {
            // The file became shorter under us.
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::INVAL) => {
                let mut buffer = vec![0; wanted.min(1 << 20)];
                let length = source.read_at(&mut buffer, from)?;
                if length == 0 {
                    return Ok(());
                }
                target.write_all_at(&buffer[..length], from)?;
                (from, to) = (from + length as u64, to + length as u64);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
