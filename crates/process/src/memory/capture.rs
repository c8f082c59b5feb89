//! Taking changed pages into the page store.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use deltabox_sys::process_vm;

use super::PAGE;
use super::maps::Vma;
use super::page_store::{PageBytes, PageRef, PageStore};
use super::page_tree::PageTree;
use super::track::Run;
use crate::error::TraceError;
use crate::ids::{Addr, HostPid};

/// Bytes read in one go: small enough to stay in the second-level cache, large enough to hide the call.
const CHUNK: usize = 256 << 10;

/// What a capture did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Taken {
    /// Bytes that were looked at.
    pub read: u64,
    /// Bytes that really differed and were stored (pages of zeros cost nothing and do not count).
    pub stored: u64,
}

/// Reads the memory of a stopped process, whatever the protection of its pages.
pub struct Reader {
    pid: HostPid,
    mem: File,
}

impl Reader {
    /// For a process that is held by this thread.
    pub fn new(pid: HostPid) -> Result<Reader, TraceError> {
        let mem = File::options()
            .read(true)
            .write(true)
            .open(format!("/proc/{pid}/mem"));
        Ok(Reader {
            pid,
            mem: mem.map_err(|source| crate::procfs::failed(pid, "mem", source))?,
        })
    }

    fn error(&self, what: &'static str, address: u64, length: usize, source: io::Error) -> TraceError {
        TraceError::Memory {
            pid: self.pid,
            what,
            address: Addr(address),
            length,
            source,
        }
    }

    /// Fills `buffer` from the ranges `(address, length)`, one after the other.
    pub fn read(&self, ranges: &[(u64, usize)], buffer: &mut [u8]) -> Result<(), TraceError> {
        let mut done = process_vm::read_ranges(self.pid.pid(), ranges, buffer).unwrap_or(0);
        let mut start = 0;
        // Pages the program itself may not read stop the fast way.
        for &(address, length) in ranges {
            if done < start + length {
                let inside = done.saturating_sub(start);
                let piece = &mut buffer[start + inside..start + length];
                let at = address + inside as u64;
                self.mem
                    .read_exact_at(piece, at)
                    .map_err(|source| self.error("read", at, length, source))?;
                done = start + length;
            }
            start += length;
        }
        Ok(())
    }

    /// Writes pages, also where the program may not write.
    pub fn write_pages(&self, pages: &[(u64, &PageRef)]) -> Result<(), TraceError> {
        let pieces: Vec<(u64, &[u8])> = pages
            .iter()
            .map(|(at, page)| (*at, page.bytes().as_slice()))
            .collect();
        let mut rest = pieces.as_slice();
        while !rest.is_empty() {
            let done = process_vm::write_ranges(self.pid.pid(), rest).unwrap_or(0);
            rest = &rest[done / PAGE as usize..];
            if let Some(&(at, bytes)) = rest.first() {
                self.mem
                    .write_all_at(bytes, at)
                    .map_err(|source| self.error("write", at, bytes.len(), source))?;
                rest = &rest[1..];
            }
        }
        Ok(())
    }
}

/// Brings `tree`, what was last seen of the process, up to date. `buffer` is room to work in, kept for the next time:
/// memory that is new costs more than what is done with it.
pub fn absorb(
    reader: &Reader,
    vmas: &[Vma],
    runs: &[Run],
    tree: &mut PageTree,
    store: &PageStore,
    buffer: &mut Vec<u8>,
) -> Result<Taken, TraceError> {
    let mut taken = Taken::default();
    let mut pending: Vec<(u64, usize, usize)> = Vec::new();
    let mut size = 0;
    buffer.resize(CHUNK, 0);
    for run in runs {
        if !run.content {
            tree.remove(run.start / PAGE, run.end / PAGE);
            continue;
        }
        let mut at = run.start;
        while at < run.end {
            let length = (run.end - at).min((CHUNK - size) as u64) as usize;
            pending.push((at, length, run.vma));
            size += length;
            at += length as u64;
            if size == CHUNK {
                absorb_chunk(reader, vmas, &pending, buffer, tree, store, &mut taken)?;
                pending.clear();
                size = 0;
            }
        }
    }
    absorb_chunk(
        reader,
        vmas,
        &pending,
        &mut buffer[..size],
        tree,
        store,
        &mut taken,
    )?;
    Ok(taken)
}

/// Drops pages of mappings that are gone.
pub fn forget_unmapped(vmas: &[Vma], tree: &mut PageTree) {
    let mut at = 0;
    for vma in vmas.iter().filter(|vma| vma.is_private()) {
        tree.remove(at / PAGE, vma.start / PAGE);
        at = vma.end;
    }
    tree.remove(at / PAGE, u64::MAX / PAGE);
}

fn absorb_chunk(
    reader: &Reader,
    vmas: &[Vma],
    pending: &[(u64, usize, usize)],
    buffer: &mut [u8],
    tree: &mut PageTree,
    store: &PageStore,
    taken: &mut Taken,
) -> Result<(), TraceError> {
    let ranges: Vec<(u64, usize)> = pending.iter().map(|&(at, length, _)| (at, length)).collect();
    reader.read(&ranges, buffer)?;
    taken.read += buffer.len() as u64;
    let mut pages = buffer
        .chunks_exact(PAGE as usize)
        .filter_map(|page| <&PageBytes>::try_from(page).ok());
    for &(start, length, vma) in pending {
        let anonymous = matches!(vmas[vma].kind, super::maps::Kind::Anonymous);
        for number in start / PAGE..(start + length as u64) / PAGE {
            let Some(bytes) = pages.next() else { return Ok(()) };
            if tree.get(number).is_some_and(|known| known.bytes() == bytes) {
                continue;
            }
            let page = store.put(bytes);
            if !page.is(&PageRef::zero()) {
                taken.stored += PAGE;
            } else if anonymous {
                tree.remove(number, number + 1);
                continue;
            }
            tree.set(number, page);
        }
    }
    Ok(())
}
