//! Mapping a segment into a process as `shmat` does: it counts as attached, and `shmdt` takes it away.

use deltabox_sys::vmas::flag;

use crate::inject::Arg;
use crate::memory::PAGE;
use crate::memory::maps::{self, Kind, Vma};
use crate::restore::RestoreError;
use crate::stop::Process;

// include/uapi/linux/shm.h
const READ_ONLY: i32 = 0o10000;
const REMAP: i32 = 0o40000;

/// Protection of what `shmat` maps.
const READ_WRITE: u8 = 0b11;

/// One call of `shmat`, and what is left of it: `shmdt` takes away all parts that come from one call.
pub(crate) struct Attachment<'a> {
    id: i32,
    /// Where the segment begins, or would.
    base: u64,
    parts: Vec<&'a Vma>,
}

impl<'a> Attachment<'a> {
    /// The wanted attachment that a wanted mapping is part of.
    pub(crate) fn around(vma: &Vma, wanted: &'a [Vma]) -> Option<Attachment<'a>> {
        let (id, base) = place(vma)?;
        let parts = wanted.iter().filter(|other| place(other) == Some((id, base)));
        let parts = parts.collect();
        Some(Attachment { id, base, parts })
    }

    pub(crate) fn is_of(&self, vma: &Vma) -> bool {
        place(vma) == Some((self.id, self.base))
    }

    /// Attaches the segment, of `size` bytes, in place of whatever is there.
    pub(crate) fn make(&self, process: &mut Process, size: u64, wanted: &[Vma]) -> Result<(), RestoreError> {
        let size = size.next_multiple_of(PAGE);
        match self.parts.as_slice() {
            [whole] if whole.size() == size => attach_at(process, self.id, whole.start, whole)?,
            _ => self.in_parts(process, size, wanted)?,
        }
        for part in self.parts.iter().filter(|part| part.protection != READ_WRITE) {
            let protection = u32::from(part.protection);
            let args = [part.start.into(), part.size().into(), protection.into()];
            must(process, libc::SYS_mprotect, &args, part)?;
        }
        Ok(())
    }

    /// The kernel attaches all of a segment: elsewhere, whence each part is moved to its place.
    fn in_parts(&self, process: &mut Process, size: u64, wanted: &[Vma]) -> Result<(), RestoreError> {
        let now = maps::read(process.pid())?;
        let elsewhere = maps::gap(&now, wanted, size).ok_or(RestoreError::Layout {
            pid: process.inside(),
            detail: "there is no free address range to attach a segment in".to_owned(),
        })?;
        let Some(first) = self.parts.first() else {
            return Ok(());
        };
        attach_at(process, self.id, elsewhere, first)?;
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        let mut rest = elsewhere;
        for part in &self.parts {
            let (from, length) = (elsewhere + (part.start.wrapping_sub(self.base)), part.size());
            let args = [
                from.into(),
                length.into(),
                length.into(),
                flags.into(),
                part.start.into(),
            ];
            must(process, libc::SYS_mremap, &args, part)?;
            drop_range(process, rest, from, part)?;
            rest = from + length;
        }
        drop_range(process, rest, elsewhere + size, first)
    }
}

/// The segment behind a mapping, and where that begins.
fn place(vma: &Vma) -> Option<(i32, u64)> {
    let id = super::segment_of(vma)?;
    match &vma.kind {
        Kind::Shared(backing) => Some((id, vma.start.wrapping_sub(backing.offset))),
        _ => None,
    }
}

fn drop_range(process: &mut Process, start: u64, end: u64, vma: &Vma) -> Result<(), RestoreError> {
    if start >= end {
        return Ok(());
    }
    must(
        process,
        libc::SYS_munmap,
        &[start.into(), (end - start).into()],
        vma,
    )
}

/// What was attached for reading only cannot be made writable later.
fn attach_at(process: &mut Process, id: i32, address: u64, vma: &Vma) -> Result<(), RestoreError> {
    let read_only = i32::from(vma.has(flag::NEVER_WRITABLE)) * READ_ONLY;
    let flags = REMAP | read_only;
    must(
        process,
        libc::SYS_shmat,
        &[id.into(), address.into(), flags.into()],
        vma,
    )
}

fn must(process: &mut Process, number: i64, args: &[Arg], vma: &Vma) -> Result<(), RestoreError> {
    let result = process.call(number, args)?;
    result.map(drop).map_err(|errno| RestoreError::Mapping {
        pid: process.inside(),
        what: "attach",
        start: vma.start,
        end: vma.end,
        errno,
    })
}
