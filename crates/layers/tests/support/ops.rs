//! Random file operations, applied alike to two trees.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Gid, Mode, RenameFlags, Timespec, Timestamps, Uid, XattrFlags,
    chmodat, chownat, fallocate, lgetxattr, linkat, lremovexattr, lsetxattr, makedev, mknodat, renameat_with,
    utimensat,
};
use rustix::io::Errno;

use super::rng::Rng;

#[derive(Clone, Debug)]
pub enum Op {
    Create(PathBuf, Vec<u8>),
    Append(PathBuf, Vec<u8>),
    WriteAt(PathBuf, u64, Vec<u8>),
    Truncate(PathBuf, u64),
    Punch(PathBuf, u64, u64),
    Mkdir(PathBuf),
    Rmdir(PathBuf),
    Unlink(PathBuf),
    RemoveAll(PathBuf),
    /// Remove a directory with its content and make it again: an opaque directory.
    Renew(PathBuf),
    /// Remove whatever is there and put something of another type in its place.
    Retype(PathBuf, u8),
    Rename(PathBuf, PathBuf),
    RenameNew(PathBuf, PathBuf),
    Exchange(PathBuf, PathBuf),
    Link(PathBuf, PathBuf),
    Symlink(PathBuf, PathBuf),
    Node(PathBuf, u8),
    Chmod(PathBuf, u32),
    Chown(PathBuf, u32, u32),
    SetXattr(PathBuf, &'static str, Vec<u8>),
    RemoveXattr(PathBuf, &'static str),
    Times(PathBuf),
}

const NAMES: [&str; 9] = ["a", "b", "c", "d", "e", "f", "g", "h", "name with spaces \u{e9}"];

/// user::rwx user:1:r-- group::r-x mask::r-x other::--- as the kernel stores it.
fn acl(user: u32, bits: u16) -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    let any = u32::MAX;
    for (tag, perm, id) in [
        (1u16, 7u16, any),
        (2, bits & 7, user),
        (4, 5, any),
        (0x10, (bits | 1) & 7, any),
        (0x20, 0, any),
    ] {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(perm.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

/// A file capability, cap_net_bind_service+ep (version 2).
fn capability() -> Vec<u8> {
    [0x0200_0001u32, 1 << 10, 0, 0, 0]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect()
}

fn new_path(rng: &mut Rng, known: &[PathBuf], dirs: &[PathBuf]) -> PathBuf {
    // Mostly in a directory; sometimes below a file, which both trees have to refuse.
    let parent = match rng.below(100) {
        0..=3 if !known.is_empty() => rng.pick(known).clone(),
        4..=84 if !dirs.is_empty() => rng.pick(dirs).clone(),
        _ => PathBuf::new(),
    };
    if parent.components().count() > 4 {
        PathBuf::from(*rng.pick(&NAMES))
    } else {
        parent.join(rng.pick(&NAMES))
    }
}

fn some_path(rng: &mut Rng, known: &[PathBuf], dirs: &[PathBuf]) -> PathBuf {
    if known.is_empty() || rng.chance(5) {
        new_path(rng, known, dirs)
    } else {
        rng.pick(known).clone()
    }
}

fn bytes(rng: &mut Rng, max: usize) -> Vec<u8> {
    let length = rng.below(max) + 1;
    let start = rng.next() as u8;
    (0..length).map(|at| start.wrapping_add((at / 3) as u8)).collect()
}

impl Op {
    /// An operation on a tree that has the paths `known`, of which `dirs` are directories.
    pub fn random(rng: &mut Rng, known: &[PathBuf], dirs: &[PathBuf]) -> Op {
        let some = |rng: &mut Rng| some_path(rng, known, dirs);
        let new = |rng: &mut Rng| new_path(rng, known, dirs);
        match rng.below(40) {
            0..=4 => Op::Create(new(rng), bytes(rng, 9000)),
            5 => Op::Append(some(rng), bytes(rng, 300)),
            6 => Op::WriteAt(
                some(rng),
                rng.below(8_000_000) as u64 >> rng.below(18),
                bytes(rng, 5000),
            ),
            7 => Op::Truncate(some(rng), rng.below(20_000_000) as u64 >> rng.below(20)),
            8 => Op::Punch(
                some(rng),
                (rng.below(16) << 12) as u64,
                ((rng.below(60) + 1) << 12) as u64,
            ),
            9..=12 => Op::Mkdir(new(rng)),
            13 => Op::Rmdir(some(rng)),
            14 | 15 => Op::Unlink(some(rng)),
            16 => Op::RemoveAll(some(rng)),
            17 => Op::Renew(some(rng)),
            18 | 19 => Op::Retype(some(rng), rng.next() as u8),
            20..=23 => {
                let to = if rng.chance(50) { some(rng) } else { new(rng) };
                Op::Rename(some(rng), to)
            }
            24 => Op::RenameNew(some(rng), new(rng)),
            25 => Op::Exchange(some(rng), some(rng)),
            26..=29 => Op::Link(some(rng), new(rng)),
            30 => Op::Symlink(some(rng), new(rng)),
            31 | 32 => Op::Node(new(rng), rng.next() as u8),
            33 => Op::Chmod(some(rng), rng.below(0o10000) as u32),
            34 => Op::Chown(some(rng), rng.below(4) as u32, rng.below(4) as u32),
            35 => Op::SetXattr(
                some(rng),
                ["user.one", "user.two", "trusted.mine"][rng.below(3)],
                bytes(rng, 200),
            ),
            36 => match rng.below(3) {
                0 => Op::SetXattr(some(rng), "security.capability", capability()),
                1 => {
                    let value = acl(rng.below(5) as u32, rng.below(8) as u16);
                    Op::SetXattr(some(rng), "system.posix_acl_access", value)
                }
                _ => {
                    let value = acl(rng.below(5) as u32, rng.below(8) as u16);
                    Op::SetXattr(some(rng), "system.posix_acl_default", value)
                }
            },
            37 => {
                let name = *rng.pick(&[
                    "user.one",
                    "user.two",
                    "system.posix_acl_access",
                    "system.posix_acl_default",
                ]);
                Op::RemoveXattr(some(rng), name)
            }
            _ => Op::Times(some(rng)),
        }
    }

    fn paths(&self) -> Vec<&PathBuf> {
        match self {
            Op::Rename(a, b)
            | Op::RenameNew(a, b)
            | Op::Exchange(a, b)
            | Op::Link(a, b)
            | Op::Symlink(a, b) => vec![a, b],
            Op::Create(a, _)
            | Op::Append(a, _)
            | Op::WriteAt(a, ..)
            | Op::Truncate(a, _)
            | Op::Punch(a, ..)
            | Op::Mkdir(a)
            | Op::Rmdir(a)
            | Op::Unlink(a)
            | Op::RemoveAll(a)
            | Op::Renew(a)
            | Op::Retype(a, _)
            | Op::Node(a, _)
            | Op::Chmod(a, _)
            | Op::Chown(a, ..)
            | Op::SetXattr(a, ..)
            | Op::RemoveXattr(a, _)
            | Op::Times(a) => vec![a],
        }
    }

    /// Applies the operation below `root`. `number` decides the times that touched files get, so that two trees can
    /// be compared to the nanosecond.
    pub fn apply(&self, root: &Path, number: u64) -> Result<(), Errno> {
        let result = self.run(root);
        // Also when it failed: overlayfs changes the time of a directory even if a rename in it is refused then.
        for path in self.paths() {
            touch(root, path, number);
            if let Some(parent) = path.parent() {
                touch(root, parent, number);
            }
        }
        result
    }

    fn run(&self, root: &Path) -> Result<(), Errno> {
        let at = |path: &PathBuf| root.join(path);
        match self {
            Op::Create(path, content) => {
                regular_or_absent(&at(path))?;
                let file = io(File::create(at(path)))?;
                io(file.write_all_at(content, 0))
            }
            Op::Append(path, content) => {
                let file = open(&at(path))?;
                let end = io(file.metadata())?.len();
                io(file.write_all_at(content, end))
            }
            Op::WriteAt(path, offset, content) => io(open(&at(path))?.write_all_at(content, *offset)),
            Op::Truncate(path, size) => io(open(&at(path))?.set_len(*size)),
            Op::Punch(path, offset, length) => {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                fallocate(open(&at(path))?, flags, *offset, *length)
            }
            Op::Mkdir(path) => io(fs::create_dir(at(path))),
            Op::Rmdir(path) => io(fs::remove_dir(at(path))),
            Op::Unlink(path) => io(fs::remove_file(at(path))),
            Op::RemoveAll(path) => remove(&at(path)),
            Op::Renew(path) => {
                remove(&at(path))?;
                io(fs::create_dir(at(path)))
            }
            Op::Retype(path, kind) => {
                remove(&at(path))?;
                make(&at(path), *kind)
            }
            Op::Rename(from, to) => renameat_with(CWD, at(from), CWD, at(to), RenameFlags::empty()),
            Op::RenameNew(from, to) => renameat_with(CWD, at(from), CWD, at(to), RenameFlags::NOREPLACE),
            Op::Exchange(from, to) => renameat_with(CWD, at(from), CWD, at(to), RenameFlags::EXCHANGE),
            Op::Link(from, to) => linkat(CWD, at(from), CWD, at(to), AtFlags::empty()),
            Op::Symlink(target, path) => io(symlink(target, at(path))),
            Op::Node(path, kind) => make(&at(path), kind % 4 + 2),
            Op::Chmod(path, mode) => {
                not_a_link(&at(path))?;
                chmodat(CWD, at(path), Mode::from_raw_mode(*mode), AtFlags::empty())
            }
            Op::Chown(path, uid, gid) => chownat(
                CWD,
                at(path),
                Some(Uid::from_raw(*uid)),
                Some(Gid::from_raw(*gid)),
                AtFlags::SYMLINK_NOFOLLOW,
            ),
            Op::SetXattr(path, name, value) => {
                not_a_link(&at(path))?;
                lsetxattr(at(path), *name, value, XattrFlags::empty())
            }
            Op::RemoveXattr(path, name) => {
                not_a_link(&at(path))?;
                // Removing an ACL that is not there is an error on some filesystems only.
                lgetxattr(at(path), *name, &mut [0u8; 4096][..])?;
                lremovexattr(at(path), *name)
            }
            Op::Times(path) => io(fs::symlink_metadata(at(path))).map(drop),
        }
    }
}

fn io<T>(result: std::io::Result<T>) -> Result<T, Errno> {
    result.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

fn not_a_link(path: &Path) -> Result<(), Errno> {
    match io(path.symlink_metadata())?.is_symlink() {
        true => Err(Errno::LOOP),
        false => Ok(()),
    }
}

fn regular_or_absent(path: &Path) -> Result<(), Errno> {
    match path.symlink_metadata() {
        Ok(metadata) if !metadata.is_file() => Err(Errno::EXIST),
        _ => Ok(()),
    }
}

/// Opens a regular file only: a fifo would wait, a link would lead out of the tree.
fn open(path: &Path) -> Result<File, Errno> {
    match io(path.symlink_metadata())?.is_file() {
        true => io(OpenOptions::new().read(true).write(true).open(path)),
        false => Err(Errno::INVAL),
    }
}

fn remove(path: &Path) -> Result<(), Errno> {
    match io(path.symlink_metadata())?.is_dir() {
        true => io(fs::remove_dir_all(path)),
        false => io(fs::remove_file(path)),
    }
}

fn make(path: &Path, kind: u8) -> Result<(), Errno> {
    let mode = Mode::from_raw_mode(0o640);
    let node = |kind, device| mknodat(CWD, path, kind, mode, device);
    match kind % 6 {
        0 => io(fs::write(path, "retyped")),
        1 => io(fs::create_dir(path)),
        2 => node(FileType::Fifo, 0),
        3 => node(FileType::Socket, 0),
        4 => node(FileType::CharacterDevice, makedev(1, 3)),
        _ => node(FileType::BlockDevice, makedev(7, 99)),
    }
}

fn touch(root: &Path, path: &Path, number: u64) {
    let time = Timespec {
        tv_sec: 1_500_000_000 + number as i64,
        tv_nsec: (number * 7_654_321 % 999_999_999) as _,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    let _ = utimensat(CWD, root.join(path), &times, AtFlags::SYMLINK_NOFOLLOW);
}
