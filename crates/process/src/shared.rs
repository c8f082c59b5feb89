//! Memory that several processes share without a file in the sandbox: shared anonymous mappings, memfds, System V
//! shared memory, and mapped files whose name has been removed.
//!
//! Content is kept once per object, however many processes map it. An object that no live process has any more is
//! made again; from then on the new one stands for the old one (an *alias*), so that mappings compare equal. Anonymous
//! memory and memfds are made as what they were; the others as memfds, unless a descriptor leads to them as well, which
//! must lead to what is mapped again, and tells what that was.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::fs::Metadata;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::OnceLock;

use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags, SeekFrom};
use rustix::fs::{fallocate, fcntl_add_seals, fcntl_get_seals, ftruncate, memfd_create, seek};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::error::TraceError;
use crate::ids::HostPid;
use crate::memory::PAGE;
use crate::memory::maps::{Backing, Kind, Vma};
use crate::memory::page_store::{PageBytes, PageRef, PageStore};
use crate::memory::page_tree::PageTree;
use crate::memory::roots::Roots;
use crate::procfs;
use crate::restore::RestoreError;

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
    /// What may not be done with it any more (`F_GET_SEALS`); 0 where there are no seals.
    pub seals: u32,
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
    let device = || {
        let file = memfd_create("device", MemfdFlags::CLOEXEC).map(File::from);
        file.map_err(io::Error::from)
            .and_then(|file| device_of(&file))
            .ok()
    };
    is_named_like_segment(vma) && key_of(vma).map(|key| key.0) == *DEVICE.get_or_init(device)
}

fn device_of(file: &File) -> io::Result<(u32, u32)> {
    Ok(numbers(&file.metadata()?).0)
}

/// The numbers of a file, as they are now.
fn numbers(metadata: &Metadata) -> Key {
    let device = metadata.dev();
    let device = (rustix::fs::major(device), rustix::fs::minor(device));
    (device, metadata.ino())
}

/// The wanted object with this key, if it has not been found yet.
fn missing<'i>(images: &'i [SharedImage], found: &HashMap<Key, File>, key: Key) -> Option<&'i SharedImage> {
    images
        .iter()
        .find(|image| image.key == key && !found.contains_key(&key))
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

/// What is mapped that can stand for nothing any more is noted with, in place of its device.
const USELESS: (u32, u32) = (u32::MAX, 1);

/// What the engine knows of shared memory.
#[derive(Default)]
pub struct SharedMemory {
    /// Objects made in place of others: the one that is there, by its numbers now, and the one it stands for.
    aliases: HashMap<Key, Key>,
    /// Content as last seen.
    seen: HashMap<Key, PageTree>,
}

impl SharedMemory {
    /// Names objects by what they stand for, and files of the root by what they are through every mount of it.
    #[must_use]
    pub fn normalize(&self, roots: &Roots, mut vmas: Vec<Vma>) -> Vec<Vma> {
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
        roots.normalize(vmas)
    }

    /// The name of what has these numbers now.
    #[must_use]
    pub fn name(&self, roots: &Roots, (device, inode): Key) -> Key {
        let alias = self.aliases.get(&(device, inode)).copied();
        alias.unwrap_or_else(|| (roots.device(device, inode), inode))
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
                let seals = seals_of(&file);
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
                    seals,
                    pages,
                });
            }
        }
        for (key, file) in others {
            let before = self.seen.remove(&key).unwrap_or_default();
            let size = file.metadata().map_err(failed)?.size();
            let pages = read_pages(file, &before, store, &mut stored).map_err(failed)?;
            self.seen.insert(key, pages.clone());
            let (name, seals) = ("/SYSV".to_owned(), seals_of(file));
            images.push(SharedImage {
                key,
                name,
                size,
                seals,
                pages,
            });
        }
        self.seen
            .retain(|key, _| images.iter().any(|image| image.key == *key));
        Ok((images, stored))
    }

    /// Makes the objects what they were; of some there are `files` already. `mapped` are the mappings as they are,
    /// and `make` makes an object that a descriptor leads to. Returns an open file for each, for processes that have
    /// to map it again.
    pub fn restore(
        &mut self,
        roots: &Roots,
        mapped: &[(HostPid, Vec<Vma>)],
        mut files: HashMap<Key, File>,
        images: &[SharedImage],
        make_known: impl Fn(Key) -> Result<Option<File>, RestoreError>,
    ) -> Result<HashMap<Key, File>, RestoreError> {
        // The numbers of what is gone may be given to others.
        let there: HashSet<Key> = mapped
            .iter()
            .flat_map(|(_, vmas)| vmas)
            .filter_map(key_of)
            .collect();
        self.aliases.retain(|made, _| there.contains(made));
        self.find_mapped(roots, mapped, &mut files, images)?;
        self.find_open(roots, mapped, &mut files, images)?;
        for image in images {
            let file = match files.entry(image.key) {
                Entry::Occupied(there) => there.into_mut(),
                Entry::Vacant(missing) => {
                    let file = match make_known(image.key)? {
                        Some(file) => file,
                        None => make(image).map_err(failed)?,
                    };
                    let metadata = file.metadata().map_err(failed)?;
                    self.aliases.insert(numbers(&metadata), image.key);
                    missing.insert(file)
                }
            };
            write_pages(file, image).map_err(failed)?;
            self.seen.insert(image.key, image.pages.clone());
        }
        Ok(files)
    }

    /// Opens what is mapped already. What has seals that it must not have serves no longer.
    fn find_mapped(
        &mut self,
        roots: &Roots,
        mapped: &[(HostPid, Vec<Vma>)],
        files: &mut HashMap<Key, File>,
        images: &[SharedImage],
    ) -> Result<(), TraceError> {
        for (pid, vmas) in mapped {
            for vma in vmas {
                let Some(numbers) = key_of(vma) else { continue };
                let key = if is_segment(vma) {
                    (SEGMENTS, numbers.1)
                } else {
                    self.name(roots, numbers)
                };
                let Some(image) = missing(images, files, key) else {
                    continue;
                };
                let failed = |source| procfs::failed(*pid, "map_files", source);
                let file = open_mapping(*pid, vma, true).map_err(failed)?;
                if seals_of(&file) & !image.seals == 0 {
                    files.insert(key, file);
                } else {
                    self.aliases.insert(numbers, (USELESS, numbers.1));
                }
            }
        }
        Ok(())
    }

    /// Opens what only descriptors lead to any more.
    fn find_open(
        &mut self,
        roots: &Roots,
        mapped: &[(HostPid, Vec<Vma>)],
        files: &mut HashMap<Key, File>,
        images: &[SharedImage],
    ) -> Result<(), TraceError> {
        for (pid, _) in mapped {
            if images.iter().all(|image| files.contains_key(&image.key)) {
                return Ok(());
            }
            let failed = |source| procfs::failed(*pid, "fd", source);
            for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).map_err(failed)? {
                let path = entry.map_err(failed)?.path();
                let metadata = std::fs::metadata(&path).map_err(failed)?;
                let key = self.name(roots, numbers(&metadata));
                let Some(image) = missing(images, files, key).filter(|_| metadata.nlink() == 0) else {
                    continue;
                };
                let file = File::options()
                    .read(true)
                    .write(true)
                    .open(&path)
                    .map_err(failed)?;
                if seals_of(&file) & !image.seals == 0 {
                    files.insert(key, file);
                }
            }
        }
        Ok(())
    }

    /// Seals what was sealed, once everybody maps it.
    pub fn seal(files: &HashMap<Key, File>, images: &[SharedImage]) -> Result<(), TraceError> {
        for image in images {
            let Some(file) = files.get(&image.key) else {
                continue;
            };
            let missing = SealFlags::from_bits_retain(image.seals & !seals_of(file));
            if !missing.is_empty() {
                fcntl_add_seals(file, missing).map_err(|errno| failed(errno.into()))?;
            }
        }
        Ok(())
    }
}

/// The seals of a file; 0 if it is of a kind that has none.
fn seals_of(file: &File) -> u32 {
    fcntl_get_seals(file).map_or(0, |seals| seals.bits())
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
    let sealing = MemfdFlags::from_bits_retain(if image.seals == SealFlags::SEAL.bits() {
        0
    } else {
        MemfdFlags::ALLOW_SEALING.bits()
    });
    Ok(File::from(memfd_create(name, MemfdFlags::CLOEXEC | sealing)?))
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
