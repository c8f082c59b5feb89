//! Memory that several processes share without a file in the sandbox: shared anonymous mappings, memfds, System V
//! shared memory, and mapped files whose name has been removed.
//!
//! Content is kept once per object, however many processes map it. An object that no live process maps any more is
//! made again; from then on the new one stands for the old one (an *alias*), so that mappings compare equal. Anonymous
//! memory and memfds are made as what they were, the others as memfds.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::OnceLock;

use rustix::fs::{FallocateFlags, MemfdFlags, SeekFrom, fallocate, ftruncate, memfd_create, seek};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::error::TraceError;
use crate::ids::HostPid;
use crate::memory::PAGE;
use crate::memory::maps::{Backing, Kind, Vma};
use crate::memory::page_store::{PageBytes, PageRef, PageStore};
use crate::memory::page_tree::PageTree;
use crate::procfs;

/// Names an object: device and inode numbers.
pub type Key = ((u32, u32), u64);

/// One object as it was.
#[derive(Clone, Serialize, Deserialize)]
pub struct SharedImage {
    /// The object.
    pub key: Key,
    /// How the kernel names it in `/proc/PID/maps`.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its pages, by their offset.
    #[serde(skip)]
    pub pages: PageTree,
}

/// Whether what is mapped is in no file that a layer holds: memory in truth, or a file without a name.
#[must_use]
pub fn is_memory(backing: &Backing) -> bool {
    backing.path.ends_with(" (deleted)") || backing.path.starts_with("/memfd:")
}

/// What mappings of System V segments are noted with in place of their device, on which inode numbers, the ids of
/// segments, are given out to other files as well.
pub const SEGMENTS: (u32, u32) = (u32::MAX, 0);

/// Whether a mapping, as the kernel tells it, goes by the name of a System V segment.
#[must_use]
pub fn is_named_like_segment(vma: &Vma) -> bool {
    let Kind::Shared(backing) = &vma.kind else {
        return false;
    };
    let name = backing.path.strip_prefix("/SYSV");
    name.and_then(|name| name.strip_suffix(" (deleted)"))
        .is_some_and(|key| key.len() == 8)
}

/// Whether it is one: segments, memfds and anonymous shared memory are on a filesystem that nothing else is on.
#[must_use]
pub fn is_segment(vma: &Vma) -> bool {
    static DEVICE: OnceLock<Option<(u32, u32)>> = OnceLock::new();
    let device = || memfd("device").and_then(|file| device_of(&file)).ok();
    is_named_like_segment(vma) && key_of(vma).map(|key| key.0) == *DEVICE.get_or_init(device)
}

fn device_of(file: &File) -> io::Result<(u32, u32)> {
    let device = file.metadata()?.dev();
    Ok((rustix::fs::major(device), rustix::fs::minor(device)))
}

/// What is behind a mapping, and how the kernel names it, if its content has to be kept here.
fn object_of(vma: &Vma) -> Option<(Key, &str)> {
    match &vma.kind {
        Kind::Shared(backing) | Kind::PrivateFile(backing) if is_memory(backing) => {
            Some(((backing.device, backing.inode), &backing.path))
        }
        _ => None,
    }
}

/// The object behind a mapping, if its content has to be kept here.
#[must_use]
pub fn key_of(vma: &Vma) -> Option<Key> {
    object_of(vma).map(|(key, _)| key)
}

/// What the engine knows of shared memory.
#[derive(Default)]
pub struct SharedMemory {
    /// Objects made in place of others: the one that is there, and the one it stands for.
    aliases: HashMap<Key, Key>,
    /// Content as last seen.
    seen: HashMap<Key, PageTree>,
}

impl SharedMemory {
    /// Names objects by what they stand for.
    #[must_use]
    pub fn normalize(&self, mut vmas: Vec<Vma>) -> Vec<Vma> {
        for vma in &mut vmas {
            if is_segment(vma)
                && let Kind::Shared(backing) = &mut vma.kind
            {
                backing.device = SEGMENTS;
                continue;
            }
            let Some(original) = key_of(vma).and_then(|key| self.aliases.get(&key)) else {
                continue;
            };
            if let Kind::Shared(backing) | Kind::PrivateFile(backing) = &mut vma.kind {
                (backing.device, backing.inode) = *original;
            }
        }
        vmas
    }

    /// Captures all objects that the processes map, and those in `others`.
    pub fn capture<'a>(
        &mut self,
        processes: impl Iterator<Item = (HostPid, &'a [Vma])> + Clone,
        others: impl Iterator<Item = (Key, &'a File)>,
        store: &PageStore,
    ) -> Result<(Vec<SharedImage>, u64), TraceError> {
        let shared: HashSet<Key> = processes
            .clone()
            .flat_map(|(_, vmas)| vmas)
            .filter(|vma| matches!(vma.kind, Kind::Shared(_)))
            .filter_map(key_of)
            .collect();
        let mut images: Vec<SharedImage> = Vec::new();
        let mut stored = 0;
        for (pid, vmas) in processes {
            for vma in vmas {
                let Some((key, name)) = object_of(vma) else {
                    continue;
                };
                if images.iter().any(|image| image.key == key) {
                    continue;
                }
                let failed = |source| procfs::failed(pid, "map_files", source);
                let file = open_mapping(pid, vma, false).map_err(failed)?;
                let before = self.seen.remove(&key).unwrap_or_default();
                let size = file.metadata().map_err(failed)?.size();
                // A library that has been replaced: nobody writes into it any more.
                let pages = if shared.contains(&key) || before.is_empty() {
                    read_pages(&file, &before, store, &mut stored).map_err(failed)?
                } else {
                    before
                };
                self.seen.insert(key, pages.clone());
                let name = name.to_owned();
                images.push(SharedImage {
                    key,
                    name,
                    size,
                    pages,
                });
            }
        }
        for (key, file) in others {
            let before = self.seen.remove(&key).unwrap_or_default();
            let size = file.metadata().map_err(failed)?.size();
            let pages = read_pages(file, &before, store, &mut stored).map_err(failed)?;
            self.seen.insert(key, pages.clone());
            let name = "/SYSV".to_owned();
            images.push(SharedImage {
                key,
                name,
                size,
                pages,
            });
        }
        self.seen
            .retain(|key, _| images.iter().any(|image| image.key == *key));
        Ok((images, stored))
    }

    /// Makes the objects what they were; of some there are `files` already. Returns an open file for each, for processes that have to map it again.
    pub fn restore<'a>(
        &mut self,
        processes: impl Iterator<Item = (HostPid, &'a [Vma])>,
        mut files: HashMap<Key, File>,
        images: &[SharedImage],
    ) -> Result<HashMap<Key, File>, TraceError> {
        for (pid, vmas) in processes {
            for vma in vmas {
                let Some(key) = key_of(vma) else { continue };
                if !files.contains_key(&key) && images.iter().any(|image| image.key == key) {
                    let failed = |source| procfs::failed(pid, "map_files", source);
                    files.insert(key, open_mapping(pid, vma, true).map_err(failed)?);
                }
            }
        }
        for image in images {
            let file = match files.entry(image.key) {
                Entry::Occupied(there) => there.into_mut(),
                Entry::Vacant(missing) => {
                    let file = make(image).map_err(failed)?;
                    let device = device_of(&file).map_err(failed)?;
                    let inode = file.metadata().map_err(failed)?.ino();
                    self.aliases.insert((device, inode), image.key);
                    missing.insert(file)
                }
            };
            write_pages(file, image).map_err(failed)?;
            self.seen.insert(image.key, image.pages.clone());
        }
        Ok(files)
    }
}

fn failed(source: io::Error) -> TraceError {
    TraceError::Ipc {
        what: "work with shared memory".to_owned(),
        source,
    }
}

fn make(image: &SharedImage) -> io::Result<File> {
    let name = image.name.strip_suffix(" (deleted)").unwrap_or(&image.name);
    if name == "/dev/zero" {
        return deltabox_sys::shared::anonymous(image.size as usize);
    }
    let name = name.strip_prefix("/memfd:").unwrap_or("shared");
    memfd(name)
}

fn memfd(name: &str) -> io::Result<File> {
    Ok(File::from(memfd_create(name, MemfdFlags::CLOEXEC)?))
}

/// Opens what is behind a mapping, wherever its name may have gone.
pub fn open_mapping(pid: HostPid, vma: &Vma, write: bool) -> io::Result<File> {
    let path = format!("/proc/{pid}/map_files/{:x}-{:x}", vma.start, vma.end);
    File::options().read(true).write(write).open(path)
}

/// Calls `visit` for each stretch of a file that holds data.
fn each_data(file: BorrowedFd<'_>, mut visit: impl FnMut(u64, u64) -> io::Result<()>) -> io::Result<()> {
    let mut at = 0;
    loop {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        let end = seek(file, SeekFrom::Hole(start))?;
        visit(start, end.next_multiple_of(PAGE))?;
        at = end;
    }
}

/// Reads one page; what lies beyond the end is zero.
fn read_page(file: &File, at: u64, bytes: &mut PageBytes) -> io::Result<()> {
    bytes.fill(0);
    let mut done = 0;
    while done < bytes.len() {
        match file.read_at(&mut bytes[done..], at + done as u64)? {
            0 => break,
            got => done += got,
        }
    }
    Ok(())
}

fn read_pages(file: &File, before: &PageTree, store: &PageStore, stored: &mut u64) -> io::Result<PageTree> {
    let mut pages = before.clone();
    let mut bytes = [0; PAGE as usize];
    let mut reached = 0;
    each_data(file.as_fd(), |start, end| {
        pages.remove(reached / PAGE, start / PAGE);
        reached = end;
        for at in (start..end).step_by(PAGE as usize) {
            read_page(file, at, &mut bytes)?;
            if pages.get(at / PAGE).is_some_and(|page| *page.bytes() == bytes) {
                continue;
            }
            let page = store.put(&bytes);
            if page.is(&PageRef::zero()) {
                pages.remove(at / PAGE, at / PAGE + 1);
            } else {
                *stored += PAGE;
                pages.set(at / PAGE, page);
            }
        }
        Ok(())
    })?;
    pages.remove(reached / PAGE, u64::MAX / PAGE);
    Ok(pages)
}

fn write_pages(file: &File, image: &SharedImage) -> io::Result<()> {
    if file.metadata()?.size() != image.size {
        ftruncate(file, image.size)?;
    }
    let mut bytes = [0; PAGE as usize];
    let mut surplus = Vec::new();
    each_data(file.as_fd(), |start, end| {
        surplus.extend(
            (start..end)
                .step_by(PAGE as usize)
                .filter(|at| image.pages.get(at / PAGE).is_none()),
        );
        Ok(())
    })?;
    for at in surplus {
        fallocate(
            file,
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            at,
            PAGE,
        )?;
    }
    let mut result = Ok(());
    image.pages.for_each(0, u64::MAX / PAGE, &mut |page, wanted| {
        if result.is_err() {
            return;
        }
        let at = page * PAGE;
        result = read_page(file, at, &mut bytes).and_then(|()| {
            if bytes == *wanted.bytes() {
                return Ok(());
            }
            let length = image.size.saturating_sub(at).min(PAGE) as usize;
            file.write_all_at(&wanted.bytes()[..length], at)
        });
    });
    result
}
