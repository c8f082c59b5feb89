//! What holds mappings where they are: locks (`mlock`, `mlockall`) and seals (`mseal`).
//!
//! Both are in the way of making mappings what they were, so they are put back last. A seal cannot be taken off: a
//! process in which a sealed mapping would have to change is made anew (`memory::restore::seals_hold`).
//!
//! Whether memory that is yet to be mapped will be locked (`MCL_FUTURE`) is told by nothing in `/proc`, but shows on
//! memory that has been mapped since: our own, which has been injected.

use deltabox_sys::attributes;
use deltabox_sys::vmas::flag;
use rustix::io::Errno;

use crate::error::TraceError;
use crate::image::ProcessImage;
use crate::inject::{Arg, Batch, CallId};
use crate::layout::Sources;
use crate::memory::PAGE;
use crate::memory::maps::{self, Vma};
use crate::memory::restore::{LOCKS, held_otherwise};
use crate::process::Process;
use crate::restore::RestoreError;

/// `mlockall(MCL_ONFAULT)`.
const MCL_ONFAULT: i32 = 4;

/// Asks whether the injected memory is locked; the answer is for [`future_locks`].
pub(crate) fn ask(batch: &mut Batch) -> CallId {
    let args = [Arg::Injected, PAGE.into(), libc::MS_INVALIDATE.into()];
    batch.call(libc::SYS_msync, &args)
}

/// How memory that will be mapped is locked: bits of [`flag`]. The batch has just been run in the process.
pub(crate) fn future_locks(process: &mut Process, batch: &Batch, asked: CallId) -> Result<u16, TraceError> {
    // "MS_INVALIDATE was specified, and a memory lock exists" (msync(2)).
    if batch.result(asked) != Err(Errno::BUSY) {
        return Ok(0);
    }
    let injected = process
        .injector()
        .0
        .scratch_range()
        .map_or(0, |range| range.start);
    let vmas = maps::read(process.pid())?;
    let vma = vmas
        .iter()
        .find(|vma| vma.start <= injected && injected < vma.end);
    Ok(vma.map_or(0, |vma| vma.flags & LOCKS))
}

/// How a process is held while it is changed.
pub(crate) struct Hold {
    /// What memory that is mapped now will be.
    future: u16,
    /// The limit of locked memory, if there are locks.
    limit: Option<Vec<u8>>,
}

impl Hold {
    /// Gets a process ready whose mappings are `now`. `future` is how memory that will be mapped is locked, if known.
    pub(crate) fn loosen(
        process: &mut Process,
        now: &[Vma],
        wanted: &ProcessImage,
        future: Option<u16>,
    ) -> Result<Hold, TraceError> {
        let mut future = match future {
            Some(future) => future,
            None => {
                let mut batch = Batch::new();
                let asked = ask(&mut batch);
                process.run(&mut batch)?;
                future_locks(process, &batch, asked)?
            }
        };
        let locks = (future | wanted.task.future_locks) != 0
            || now.iter().chain(&wanted.vmas).any(|vma| vma.has(flag::LOCKED));
        // The program may have lowered its limit after it has locked; what is mapped on the way counts as well.
        let limit = locks.then(|| lift_limit(process)).transpose()?;
        if future != 0 && future != wanted.task.future_locks {
            // There is no other way to end it. What is to be locked is locked again.
            let pid = process.pid();
            let unlocked = process.call(libc::SYS_munlockall, &[])?;
            unlocked.map_err(|errno| TraceError::Call {
                pid,
                name: "munlockall",
                errno,
            })?;
            future = 0;
        }
        Ok(Hold { future, limit })
    }

    /// Locks and seals what `wanted` has locked and sealed.
    pub(crate) fn fasten(
        self,
        process: &mut Process,
        wanted: &ProcessImage,
        sources: &Sources<'_>,
    ) -> Result<(), RestoreError> {
        let sealed = wanted.vmas.iter().any(|vma| vma.has(flag::SEALED));
        if self.limit.is_none() && !sealed {
            return Ok(());
        }
        let now = mappings(process, sources)?;
        let mut batch = Batch::new();
        for (start, end, flags) in held_otherwise(&now, &wanted.vmas) {
            let range: [Arg; 2] = [start.into(), (end - start).into()];
            // A failure to bring in the pages (of what cannot be read) leaves the lock; what counts is looked at below.
            if flags & flag::LOCKED == 0 {
                batch.call(libc::SYS_munlock, &range);
            } else {
                let on_fault = u32::from(flags & flag::ON_FAULT != 0) * libc::MLOCK_ONFAULT;
                batch.call(libc::SYS_mlock2, &[range[0], range[1], on_fault.into()]);
            }
            if flags & flag::SEALED != 0 {
                batch.call(libc::SYS_mseal, &[range[0], range[1], 0.into()]);
            }
        }
        let future = wanted.task.future_locks;
        if future != self.future {
            let on_fault = if future & flag::ON_FAULT != 0 {
                MCL_ONFAULT
            } else {
                0
            };
            batch.call(libc::SYS_mlockall, &[(libc::MCL_FUTURE | on_fault).into()]);
        }
        process.run(&mut batch)?;
        if let Some(limit) = self.limit {
            set_limit(process, &limit)?;
        }
        let left = held_otherwise(&mappings(process, sources)?, &wanted.vmas);
        if left.is_empty() {
            return Ok(());
        }
        Err(RestoreError::Layout {
            pid: wanted.pid,
            detail: format!("locked or sealed otherwise: {left:x?}"),
        })
    }
}

fn mappings(process: &mut Process, sources: &Sources<'_>) -> Result<Vec<Vma>, TraceError> {
    let injected = process.injector().0.scratch_range();
    Ok(sources.normalize(maps::without(maps::read(process.pid())?, injected)))
}

/// Lets a process lock as much as it likes. Returns the limit it had.
fn lift_limit(process: &Process) -> Result<Vec<u8>, TraceError> {
    let pid = process.pid().pid();
    let limit =
        attributes::limit(pid, libc::RLIMIT_MEMLOCK as usize).map_err(|source| failed(process, source))?;
    // Where that is not allowed, the limit may do; if not, the locks turn out to be missing.
    let _ = attributes::set_limit(pid, libc::RLIMIT_MEMLOCK as usize, &[u8::MAX; 16]);
    Ok(limit)
}

fn set_limit(process: &Process, limit: &[u8]) -> Result<(), TraceError> {
    let Some(limit) = limit.first_chunk() else {
        return Ok(());
    };
    attributes::set_limit(process.pid().pid(), libc::RLIMIT_MEMLOCK as usize, limit)
        .map_err(|source| failed(process, source))
}

fn failed(process: &Process, source: std::io::Error) -> TraceError {
    TraceError::Request {
        tid: process.pid(),
        what: "change the limit of locked memory of",
        source,
    }
}
