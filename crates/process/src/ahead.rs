//! Copying memory ahead of a stop.
//!
//! What was written since the last checkpoint is known page by page while the programs run on, and most of it is not
//! written again before they are stopped. So where there is much it is copied first, as often as it takes until little
//! is left: the time a sandbox stands still then depends neither on what a process holds nor on all it has written.
//!
//! A page is protected before it is read. If it is written meanwhile, what was read may be any mixture, but the page
//! then counts as written again and is read once more while everything stands still.

use crate::engine::Engine;
use crate::error::TraceError;
use crate::host::Host;
use crate::ids::HostPid;
use crate::memory::PAGE;
use crate::memory::capture::{Taken, absorb};
use crate::memory::maps::{self, Vma};
use crate::memory::track::Run;
use crate::procfs;

/// Bytes of a delta from which on copying ahead is worth another look at all mappings.
const WORTH: u64 = 512 << 10;

/// Bytes that may be left for the stop, if there is less with each round.
const FEW: u64 = 2 << 20;

/// Rounds at the most: a program may write as fast as it is copied.
const ROUNDS: usize = 5;

/// Resident bytes from which on a process that is not known yet is made known by a short stop of its own.
const LARGE: u64 = 16 << 20;

/// What has been done for a process ahead of a stop.
#[derive(Default)]
pub(crate) struct Ahead {
    /// What was written, in any order.
    written: Vec<(u64, u64)>,
    /// Of that, what could not be read.
    unread: Vec<Run>,
    /// Bytes that were read and stored.
    pub(crate) taken: Taken,
}

impl Ahead {
    /// Adds what could not be read to what a scan has found.
    pub(crate) fn complete(&self, mut runs: Vec<Run>, vmas: &[Vma]) -> Vec<Run> {
        let mut more = Vec::new();
        for run in &self.unread {
            for at in (run.start..run.end).step_by(PAGE as usize) {
                let vma = vmas.partition_point(|vma| vma.end <= at);
                let mapped = vmas
                    .get(vma)
                    .is_some_and(|vma| vma.start <= at && vma.is_private());
                let place = runs.partition_point(|run| run.end <= at);
                let known = runs.get(place).is_some_and(|run| run.start <= at);
                if mapped && !known {
                    let (start, end, content) = (at, at + PAGE, run.content);
                    more.push(Run {
                        start,
                        end,
                        vma,
                        content,
                    });
                }
            }
        }
        if !more.is_empty() {
            runs.extend(more);
            runs.sort_unstable_by_key(|run| run.start);
        }
        runs
    }

    /// All that was written since the process was last let go: `runs` and what was found before. Sorted and apart.
    pub(crate) fn all_written(self, runs: &[Run]) -> Vec<(u64, u64)> {
        let mut all = self.written;
        all.extend(runs.iter().map(|run| (run.start, run.end)));
        all.sort_unstable();
        let mut joined: Vec<(u64, u64)> = Vec::with_capacity(all.len());
        for (start, end) in all {
            match joined.last_mut() {
                Some(last) if start <= last.1 => last.1 = last.1.max(end),
                _ => joined.push((start, end)),
            }
        }
        joined
    }
}

impl<H: Host> Engine<H> {
    /// Copies what can be copied before the sandbox is stopped for a checkpoint. What goes wrong here costs time only.
    pub fn copy_ahead(&mut self) {
        if let Err(error) = self.meet_large() {
            tracing::debug!(%error, "processes could not be made known ahead");
        }
        let worth: Vec<HostPid> = self
            .live
            .iter()
            .filter(|(_, live)| live.delta.is_none_or(|delta| delta >= WORTH))
            .map(|(pid, _)| *pid)
            .collect();
        for pid in worth {
            let mut before = u64::MAX;
            for _ in 0..ROUNDS {
                match self.copy_once(pid) {
                    Ok(read) if read > FEW && read < before / 2 => before = read,
                    Ok(_) => break,
                    Err(error) => {
                        tracing::debug!(%error, "memory could not be copied ahead");
                        break;
                    }
                }
            }
        }
    }

    /// Following the writes of a process takes a call made inside of it.
    fn meet_large(&mut self) -> Result<(), crate::stop::StopError> {
        let pids = self.host.pids().map_err(|source| crate::stop::StopError::Host {
            what: "list the processes of",
            source,
        })?;
        let unknown = |pid: &HostPid| !self.live.contains_key(pid) && resident(*pid) >= LARGE;
        if !pids.iter().any(unknown) {
            return Ok(());
        }
        let mut stopped = self.stop()?;
        for process in &mut stopped.tree.processes {
            stopped.engine.live(process)?;
        }
        stopped.resume()?;
        Ok(())
    }

    /// One round; gives the bytes read.
    fn copy_once(&mut self, pid: HostPid) -> Result<u64, TraceError> {
        let vmas = self.shared.normalize(&self.roots, maps::read(pid)?);
        let Some(live) = self.live.get_mut(&pid) else {
            return Ok(0);
        };
        live.tracker.register(&vmas)?;
        let runs = live.tracker.scan(&vmas, &live.seen)?;
        live.ahead
            .written
            .extend(runs.iter().map(|run| (run.start, run.end)));
        let taken = absorb(
            &live.reader,
            &vmas,
            &runs,
            &mut live.seen,
            &self.store,
            &mut self.buffer,
        );
        match taken {
            Ok(Taken { read, stored }) => {
                live.ahead.taken.read += read;
                live.ahead.taken.stored += stored;
                Ok(read)
            }
            // Something was unmapped meanwhile.
            Err(error) => {
                live.ahead.unread.extend(runs);
                Err(error)
            }
        }
    }
}

/// Resident bytes of a process; 0 if it is gone.
fn resident(pid: HostPid) -> u64 {
    let text = procfs::read_text(pid, "statm").unwrap_or_default();
    let pages = text.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * PAGE
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::maps::Kind;
    use crate::test_images::vma;

    fn run(start: u64, end: u64) -> Run {
        Run {
            start,
            end,
            vma: 0,
            content: true,
        }
    }

    #[test]
    fn what_was_written_before_counts() {
        let ahead = Ahead {
            written: vec![(0x5000, 0x7000), (0x1000, 0x2000)],
            ..Ahead::default()
        };
        let all = ahead.all_written(&[run(0x2000, 0x3000), run(0x6000, 0x9000)]);
        assert_eq!(all, [(0x1000, 0x3000), (0x5000, 0x9000)]);
    }

    #[test]
    fn what_could_not_be_read_is_read_later_if_it_is_still_there() {
        let vmas = [
            vma(0x1000, 0x3000, Kind::Anonymous),
            vma(0x3000, 0x4000, Kind::Kernel("[vvar]".to_owned())),
            vma(0x5000, 0x6000, Kind::Anonymous),
        ];
        let ahead = Ahead {
            unread: vec![run(0x1000, 0x6000)],
            ..Ahead::default()
        };
        let runs = ahead.complete(vec![run(0x2000, 0x3000)], &vmas);
        let found: Vec<_> = runs.iter().map(|run| (run.start, run.end, run.vma)).collect();
        assert_eq!(
            found,
            [(0x1000, 0x2000, 0), (0x2000, 0x3000, 0), (0x5000, 0x6000, 2)]
        );
    }
}
