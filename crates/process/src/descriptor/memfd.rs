//! memfd: an anonymous file in memory, with content, size and seals.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, Mode, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};
use serde::{Deserialize, Serialize};

use super::contents::Contents;
use super::error::{Error, making};
use super::live::Live;
use super::place::reopen;
use super::tables::{ContentId, Kind, ObjectKey, Tables};

/// A memfd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    pub name: Vec<u8>,
    pub object: ObjectKey,
    pub content: ContentId,
    pub seals: u32,
    pub mode: u32,
}

/// `HUGETLBFS_MAGIC` (include/uapi/linux/magic.h).
const HUGETLBFS: u64 = 0x9584_58f6;

pub(super) fn survey(live: &Live, position: usize) -> Result<Option<(&'static str, &'static str)>, Error> {
    let file = live.pull(position)?;
    let fs = rustix::fs::fstatfs(file).map_err(making("a memfd"))?;
    if fs.f_type as u64 == HUGETLBFS {
        return Ok(Some((
            "a memfd of huge pages cannot be copied",
            "create it without MFD_HUGETLB",
        )));
    }
    Ok(None)
}

pub(super) fn capture(
    live: &Live,
    position: usize,
    previous: Option<&Tables>,
    contents: &mut dyn Contents,
) -> Result<State, Error> {
    let description = &live.descriptions[position];
    let name = description
        .link
        .strip_prefix(b"/memfd:")
        .unwrap_or(&description.link);
    let name = name.strip_suffix(b" (deleted)").unwrap_or(name).to_vec();
    let file = live.pull(position)?;
    let what = || format!("memfd {}", String::from_utf8_lossy(&name));
    let seals = fcntl_get_seals(file).map_err(making(what()))?.bits();
    // Times do not move when a mapping is written to, so the content itself is compared.
    let known = previous.and_then(|tables| {
        tables.descriptions.iter().find_map(|d| match &d.kind {
            Kind::Memfd(old) if old.object == description.object => Some(old.content),
            _ => None,
        })
    });
    let readable = reopen(file, libc::O_RDONLY as u32).map_err(making(what()))?;
    let content = contents.keep(readable.as_fd(), known).map_err(making(what()))?;
    Ok(State {
        object: description.object,
        content,
        seals,
        mode: description.mode & 0o7777,
        name,
    })
}

/// The same file; seals cannot be taken off again, so one with more of them than wanted is of no use.
pub(super) fn same(wanted: &State, live: &Live, position: usize) -> bool {
    let description = &live.descriptions[position];
    if description.object != wanted.object {
        return false;
    }
    let Ok(file) = live.pull(position) else {
        return false;
    };
    fcntl_get_seals(file).is_ok_and(|now| now.bits() & !wanted.seals == 0)
}

/// Writes back what differs; the seals come last.
pub(super) fn restore(wanted: &State, file: BorrowedFd<'_>, contents: &dyn Contents) -> Result<(), Error> {
    let what = || format!("memfd {}", String::from_utf8_lossy(&wanted.name));
    let readable = reopen(file, libc::O_RDONLY as u32).map_err(making(what()))?;
    if !contents
        .holds(readable.as_fd(), wanted.content)
        .map_err(making(what()))?
    {
        let writable = reopen(file, libc::O_RDWR as u32).map_err(making(what()))?;
        contents
            .put_back(writable.as_fd(), wanted.content)
            .map_err(making(what()))?;
    }
    set_mode(wanted, file)?;
    seal(wanted, file)
}

fn set_mode(wanted: &State, file: BorrowedFd<'_>) -> Result<(), Error> {
    let what = || format!("memfd {}", String::from_utf8_lossy(&wanted.name));
    let now = rustix::fs::fstat(file).map_err(making(what()))?;
    if now.st_mode & 0o7777 != wanted.mode {
        rustix::fs::fchmod(file, Mode::from_raw_mode(wanted.mode)).map_err(making(what()))?;
    }
    Ok(())
}

fn seal(wanted: &State, file: BorrowedFd<'_>) -> Result<(), Error> {
    let what = || format!("memfd {}", String::from_utf8_lossy(&wanted.name));
    let now = fcntl_get_seals(file).map_err(making(what()))?;
    let missing = SealFlags::from_bits_retain(wanted.seals & !now.bits());
    if !missing.is_empty() {
        let writable = reopen(file, libc::O_RDWR as u32).map_err(making(what()))?;
        fcntl_add_seals(&writable, missing).map_err(making(what()))?;
    }
    Ok(())
}

/// Makes one that can be written to still.
pub(super) fn make_unsealed(wanted: &State, contents: &dyn Contents) -> Result<OwnedFd, Error> {
    let what = || format!("memfd {}", String::from_utf8_lossy(&wanted.name));
    let mut kind = MemfdFlags::CLOEXEC;
    if wanted.seals != SealFlags::SEAL.bits() {
        kind |= MemfdFlags::ALLOW_SEALING;
    }
    let file = memfd_create(wanted.name.as_slice(), kind).map_err(making(what()))?;
    contents
        .put_back(file.as_fd(), wanted.content)
        .map_err(making(what()))?;
    set_mode(wanted, file.as_fd())?;
    Ok(file)
}

pub(super) fn make(wanted: &State, flags: u32, contents: &dyn Contents) -> Result<OwnedFd, Error> {
    let what = || format!("memfd {}", String::from_utf8_lossy(&wanted.name));
    let file = make_unsealed(wanted, contents)?;
    // A memfd is made for reading and writing; a description of another kind was opened through /proc.
    let usual = (libc::O_RDWR | 0o100_000) as u32;
    let fd = if flags == usual {
        file.try_clone()
    } else {
        reopen(file.as_fd(), flags).map_err(Into::into)
    };
    let fd = fd.map_err(making(what()))?;
    seal(wanted, file.as_fd())?;
    Ok(fd)
}
