//! Children of init: those it started and the orphans it inherited; reaping, and telling the owner.

use std::collections::{HashMap, HashSet, VecDeque};
use std::os::fd::OwnedFd;

use rustix::event::PollFlags;
use rustix::process::{Pid, WaitOptions, WaitStatus, wait, waitpid};

use crate::protocol::ExitNotice;
use crate::wire::Channel;

/// Notices of orphans that are kept while the owner does not listen; older ones are dropped first. Notices of
/// processes that the owner started are never dropped.
const ORPHAN_NOTICES_MAX: usize = 1024;

pub(super) struct Children {
    events: Channel,
    /// Starts by PID.
    started: HashMap<i32, u64>,
    held: HashSet<i32>,
    pending: VecDeque<ExitNotice>,
    last_start: u64,
}

impl Children {
    pub(super) fn new(events: Channel) -> Self {
        Self {
            events,
            started: HashMap::new(),
            held: HashSet::new(),
            pending: VecDeque::new(),
            last_start: 0,
        }
    }

    pub(super) fn events(&self) -> &Channel {
        &self.events
    }

    /// What to wait for on the event socket: room, while there is something to send.
    pub(super) fn interest(&self) -> PollFlags {
        if self.pending.is_empty() {
            PollFlags::empty()
        } else {
            PollFlags::OUT
        }
    }

    pub(super) fn next_start(&mut self) -> u64 {
        self.last_start += 1;
        self.last_start
    }

    pub(super) fn started(&mut self, pid: i32, start: u64) {
        self.started.insert(pid, start);
    }

    /// A start that failed: its end is not news.
    pub(super) fn forget(&mut self, pid: i32) {
        self.started.insert(pid, u64::MAX);
    }

    pub(super) fn hold(&mut self, pid: i32, hold: bool) {
        if hold {
            self.held.insert(pid);
        } else {
            self.held.remove(&pid);
        }
    }

    /// Empties the signal descriptor; what happened is asked of the kernel.
    pub(super) fn drain(&self, signals: &OwnedFd) {
        let mut record = [0; 128];
        while rustix::io::read(signals, &mut record).is_ok() {}
    }

    /// Collects every child that has ended, except the held ones and those in `keep`.
    pub(super) fn reap(&mut self, proc: Option<&OwnedFd>, keep: &[i32]) {
        if self.held.is_empty() && keep.is_empty() {
            while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
                self.note(pid, status);
            }
            return;
        }
        // Waiting for any child would take those too, so the others are asked one by one.
        for pid in proc.map(list_children).unwrap_or_default() {
            let number = pid.as_raw_nonzero().get();
            if self.held.contains(&number) || keep.contains(&number) {
                continue;
            }
            if let Ok(Some((pid, status))) = waitpid(Some(pid), WaitOptions::NOHANG) {
                self.note(pid, status);
            }
        }
    }

    /// How many children there are, dead or alive, apart from the held ones.
    pub(super) fn count(&self, proc: Option<&OwnedFd>) -> usize {
        let children = proc.map(list_children).unwrap_or_default();
        children
            .iter()
            .filter(|pid| !self.held.contains(&pid.as_raw_nonzero().get()))
            .count()
    }

    fn note(&mut self, pid: Pid, status: WaitStatus) {
        let pid = pid.as_raw_nonzero().get();
        let start = self.started.remove(&pid).unwrap_or(0);
        if start == u64::MAX {
            return;
        }
        let signal = status.terminating_signal();
        let signalled = signal.is_some();
        let code = signal.or(status.exit_status()).unwrap_or(0);
        // Bit 7 of the status word says that a core was dumped (man 2 wait).
        let core = signalled && status.as_raw() & 0x80 != 0;
        if start == 0 {
            let orphans = self.pending.iter().filter(|notice| notice.start == 0).count();
            if orphans >= ORPHAN_NOTICES_MAX
                && let Some(oldest) = self.pending.iter().position(|notice| notice.start == 0)
            {
                self.pending.remove(oldest);
            }
        }
        self.pending.push_back(ExitNotice {
            start,
            pid,
            code,
            signalled,
            core,
        });
    }

    /// Sends what the owner's queue has room for.
    pub(super) fn flush(&mut self) {
        while let Some(notice) = self.pending.front() {
            if self.events.try_send(notice).is_err() {
                return;
            }
            self.pending.pop_front();
        }
    }
}

/// The children of this process (CONFIG_PROC_CHILDREN), from the cell's own procfs.
fn list_children(proc: &OwnedFd) -> Vec<Pid> {
    let list = crate::files::read(proc, "thread-self/children").unwrap_or_default();
    list.split_whitespace()
        .filter_map(|pid| Pid::from_raw(pid.parse().ok()?))
        .collect()
}
