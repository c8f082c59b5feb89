//! Telling that a thread has done nothing since it was last seen.
//!
//! Most threads of a sandbox sleep most of the time. What only the thread itself can change need not be asked for
//! again then, and asking means running code in the process: the most expensive part of a stop.
//!
//! A thread has done nothing if it is in the very same interrupted system call, every register being what it was, *and*
//! nothing was written at the top of its stack: to make another call and then this one again it would at least have
//! stored a return address there, and a signal handler's frame begins right below (beyond the red zone of 128 bytes)
//! or at the top of the alternate stack. Writes are told by the same tracking that finds changed pages, which notices
//! those that store what was there before, too.

use crate::error::TraceError;
use crate::ids::HostPid;
use crate::image::ProcessImage;
use crate::memory::PAGE;
use crate::memory::maps::Vma;
use crate::process::Process;
use crate::procfs;
use crate::task::{TaskImage, coredump_filter, limits, oom_score};
use crate::thread::{Registers, Scheduling, Signal, ThreadImage, interrupted_call, word};

/// Bytes below the stack pointer that belong to the running function (System V ABI, AMD64).
const RED_ZONE: u64 = 128;

/// `SS_DISABLE` of `sigaltstack(2)`.
const ALTERNATE_DISABLED: u32 = 2;

/// For each thread: what it was, if it has done nothing since `known`.
pub(crate) fn threads<'k>(
    process: &mut Process,
    known: Option<&'k ProcessImage>,
    vmas: &[Vma],
    written: &[(u64, u64)],
) -> Result<Vec<Option<&'k ThreadImage>>, TraceError> {
    let memory = Memory { vmas, written };
    let mut found = Vec::with_capacity(process.threads.len());
    for place in 0..process.threads.len() {
        let tid = process.threads[place].inside;
        let was = known.and_then(|known| known.threads.iter().find(|thread| thread.tid == tid));
        found.push(match was {
            Some(was) if has_done_nothing(process, place, was, &memory)? => Some(was),
            _ => None,
        });
    }
    Ok(found)
}

/// Whether what only the process itself can change, and time cannot, is as in `known`, all its threads being idle.
pub(crate) fn task_is_settled(
    process: &Process,
    known: &ProcessImage,
    idle: &[Option<&ThreadImage>],
) -> bool {
    let stopped = |setting: &Vec<u8>| setting.iter().all(|&byte| byte == 0);
    process.threads.len() == known.threads.len()
        && idle.iter().all(Option::is_some)
        && known.task.timers.is_empty()
        && known.task.interval_timers.iter().all(stopped)
}

/// A thread that has done nothing, with what others may have changed about it.
pub(crate) fn thread(
    process: &mut Process,
    place: usize,
    was: &ThreadImage,
) -> Result<ThreadImage, TraceError> {
    let pid = process.pid();
    let tracee = &mut process.threads[place].tracee;
    let tid = tracee.tid();
    let mut now = was.clone();
    now.pending = tracee.context()?.pending.iter().map(Signal::from).collect();
    now.scheduling = Scheduling::of(tid)?;
    now.name = name(pid, tid, was.name.len())?;
    now.timer_slack = procfs::read_text(tid, "timerslack_ns")?
        .trim()
        .parse()
        .map_err(|_| procfs::malformed(tid, "timerslack_ns"))?;
    Ok(now)
}

/// A process that is settled, with what others may have changed about it.
pub(crate) fn task(process: &mut Process, was: &TaskImage) -> Result<TaskImage, TraceError> {
    let pid = process.pid();
    let mut now = was.clone();
    now.umask = process.status().umask;
    let first = process.threads.first_mut().ok_or(TraceError::Gone { tid: pid })?;
    // The engine may have caused some itself, by ending children.
    first.tracee.refresh_pending()?;
    let context = first.tracee.context()?;
    now.pending = context.process_pending.iter().map(Signal::from).collect();
    now.limits = limits(pid)?;
    now.oom_score_adj = oom_score(pid)?;
    now.coredump_filter = coredump_filter(pid)?;
    Ok(now)
}

struct Memory<'a> {
    vmas: &'a [Vma],
    written: &'a [(u64, u64)],
}

impl Memory<'_> {
    /// Whether the page at `address` is followed and was not written.
    fn is_untouched(&self, address: u64) -> bool {
        let page = address & !(PAGE - 1);
        let vma = self.vmas.partition_point(|vma| vma.end <= page);
        let followed = self
            .vmas
            .get(vma)
            .is_some_and(|vma| vma.start <= page && vma.is_private());
        let place = self.written.partition_point(|&(_, end)| end <= page);
        let written = self.written.get(place).is_some_and(|&(start, _)| start <= page);
        followed && !written
    }
}

fn has_done_nothing(
    process: &mut Process,
    place: usize,
    was: &ThreadImage,
    memory: &Memory<'_>,
) -> Result<bool, TraceError> {
    let context = process.threads[place].tracee.context()?.clone();
    let Some(registers) = interrupted_call(process, &context.regs) else {
        return Ok(false);
    };
    let rsp = context.regs.rsp;
    let mut registers = Registers::from(&registers);
    registers.take_restarted_call(&was.registers);
    let same = registers == was.registers
        && context.sigmask == was.sigmask
        && memory.is_untouched(rsp)
        && memory.is_untouched(rsp.wrapping_sub(RED_ZONE + 8))
        && alternate_top(&was.altstack).is_none_or(|top| memory.is_untouched(top));
    Ok(same && process.threads[place].tracee.xstate()? == was.xstate)
}

/// Where a signal handler's frame on the alternate stack would begin (`stack_t`: address, flags, size).
fn alternate_top(altstack: &[u8]) -> Option<u64> {
    let word = |at: usize| word(altstack.get(at..).unwrap_or_default());
    let enabled = word(8) as u32 & ALTERNATE_DISABLED == 0 && word(16) > 0;
    enabled.then(|| (word(0) + word(16)).wrapping_sub(8))
}

/// The thread's name as `PR_GET_NAME` gives it: padded to `size` bytes.
fn name(pid: HostPid, tid: HostPid, size: usize) -> Result<Vec<u8>, TraceError> {
    let mut name = procfs::read(pid, &format!("task/{tid}/comm"))?;
    name.pop();
    name.resize(size, 0);
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::maps::Kind;
    use crate::test_images::vma;

    #[test]
    fn only_followed_pages_can_be_untouched() {
        let vmas = [
            vma(0x1000, 0x5000, Kind::Anonymous),
            vma(0x5000, 0x6000, Kind::Kernel("[vvar]".to_owned())),
        ];
        let written = [(0x2000, 0x4000)];
        let memory = Memory {
            vmas: &vmas,
            written: &written,
        };
        let untouched = [0x1000, 0x1fff, 0x4000, 0x4fff];
        let touched = [0xfff, 0x2000, 0x3fff, 0x5000, 0x6000, u64::MAX];
        assert!(untouched.iter().all(|&at| memory.is_untouched(at)));
        assert!(!touched.iter().any(|&at| memory.is_untouched(at)));
    }

    #[test]
    fn the_top_of_an_alternate_stack_is_found() {
        let stack = |flags: u64| [0x10000, flags, 0x2000].map(u64::to_ne_bytes).concat();
        assert_eq!(alternate_top(&stack(0)), Some(0x11ff8));
        assert_eq!(alternate_top(&stack(u64::from(ALTERNATE_DISABLED))), None);
        assert_eq!(alternate_top(&[]), None);
    }
}
