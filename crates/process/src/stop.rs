//! Stopping every thread of a sandbox at one instant, and holding them.

use std::collections::{HashMap, HashSet};
use std::io;
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::error::TraceError;
use crate::host::Host;
use crate::ids::{Addr, HostPid, InsidePid};
use crate::process::OPTIONS;
pub use crate::process::{Process, Reason, Thread, Tree, Untraceable};
use crate::procfs::{self, Status};
use crate::survey::Refusal;
use crate::task::Stat;
use crate::tracee::Tracee;

/// How long all threads together may take to stop. A thread that waits for a dead network file system cannot be stopped
/// at all.
pub const STOP_LIMIT: Duration = Duration::from_millis(2000);

/// How long a child made by `vfork` may take to call `execve`, most of them taking less than a millisecond. Its parent
/// cannot be stopped until then.
const VFORK_LIMIT: Duration = Duration::from_millis(500);

/// How long the sandbox runs before it is looked at again when a thread cannot be stopped.
const PAUSE: Duration = Duration::from_micros(500);

/// Where in the kernel a thread waits for a child made by `vfork`.
const VFORK_PLACES: [&str; 2] = ["kernel_clone", "wait_for_vfork_done"];

/// How long frozen threads may look as if they were running. They wait for a processor then, which other sandboxes may
/// keep from them for some time. Only where there is no freezer are there threads that never settle.
const SETTLE_LIMIT: Duration = Duration::from_millis(200);

/// Rounds of looking for tasks born while others were being attached. Everything being frozen, two are enough; more
/// only happen where there is no freezer.
const MAX_ROUNDS: usize = 1000;

/// Why the sandbox could not be stopped. It runs on.
#[derive(Debug, Error)]
pub enum StopError {
    /// The sandbox refused to freeze or to list its processes.
    #[error("cannot {what} the sandbox: {source}")]
    Host { what: &'static str, source: io::Error },
    /// A thread did not stop in time.
    #[error(
        "process {inside} ({name}) did not stop within {limit_ms} ms: a thread is in an uninterruptible wait; try again when it has finished"
    )]
    Stuck {
        inside: InsidePid,
        name: String,
        limit_ms: u128,
    },
    /// A thread waits for a child made by `vfork`.
    #[error("{0}")]
    Vfork(Refusal),
    /// New processes appeared faster than they could be attached.
    #[error("the sandbox creates processes faster than they can be stopped; limit its number of processes")]
    TooMany,
    /// A task that was to be re-created got another id.
    #[error("process or thread {wanted} cannot be created again: its id is taken (got {got})")]
    PidTaken { wanted: InsidePid, got: InsidePid },
    /// Anything ptrace says.
    #[error(transparent)]
    Trace(#[from] TraceError),
}

/// Thaws when dropped, so that no error path leaves a sandbox frozen.
struct Frozen<'h, H: Host + ?Sized> {
    host: &'h mut H,
    thawed: bool,
}

impl<H: Host + ?Sized> Frozen<'_, H> {
    fn freeze(&mut self) -> Result<(), StopError> {
        self.thawed = false;
        self.host.freeze().map_err(|source| StopError::Host {
            what: "freeze",
            source,
        })
    }

    fn thaw(&mut self) -> Result<(), StopError> {
        self.thawed = true;
        self.host
            .thaw()
            .map_err(|source| StopError::Host { what: "thaw", source })
    }
}

impl<H: Host + ?Sized> Drop for Frozen<'_, H> {
    fn drop(&mut self) {
        if !self.thawed
            && let Err(error) = self.host.thaw()
        {
            tracing::error!(%error, "the sandbox could not be thawed");
        }
    }
}

/// What is known of a process from an earlier stop: where its `syscall` instruction is.
pub(crate) type Known<'k> = &'k dyn Fn(HostPid, &Stat) -> Option<Addr>;

/// Stops all processes of the sandbox. On failure nothing stays stopped.
pub fn stop<H: Host + ?Sized>(host: &mut H) -> Result<Tree, StopError> {
    stop_known(host, &|_, _| None)
}

/// As [`stop`], with what an earlier stop has found out.
pub(crate) fn stop_known<H: Host + ?Sized>(host: &mut H, known: Known<'_>) -> Result<Tree, StopError> {
    let start = Instant::now();
    let mut vforks = Vforks::default();
    let mut frozen = Frozen { host, thawed: true };
    loop {
        frozen.freeze()?;
        let seen = look_settled(&mut frozen)?;
        let Some(waiting) = seen.iter().find(|process| process.wait.is_some()) else {
            return hold(frozen, seen, known);
        };
        if let Some(parent) = vforks.outlasting(&seen) {
            return Err(StopError::Vfork(in_vfork(&parent.status)));
        }
        if start.elapsed() > STOP_LIMIT {
            return Err(stuck(&waiting.status));
        }
        // What it waits for has to go on until the wait is over.
        frozen.thaw()?;
        std::thread::sleep(PAUSE);
    }
}

/// A wait that ptrace cannot interrupt.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wait {
    Vfork,
    Other,
}

/// Parents that wait for a child made by `vfork`, with the host pids of all their children, which tell one such wait
/// from the next: since when.
#[derive(Default)]
struct Vforks(HashMap<(HostPid, Vec<HostPid>), Instant>);

impl Vforks {
    /// A parent whose child takes too long.
    fn outlasting<'s>(&mut self, seen: &'s [Seen]) -> Option<&'s Seen> {
        let now = Instant::now();
        let mut waits = HashMap::new();
        let mut found = None;
        for parent in seen.iter().filter(|process| process.wait == Some(Wait::Vfork)) {
            let children = seen
                .iter()
                .filter(|child| child.status.parent == parent.pid.raw());
            let key = (parent.pid, children.map(|child| child.pid).collect());
            let since = self.0.get(&key).copied().unwrap_or(now);
            if now - since > VFORK_LIMIT {
                found = Some(parent);
            }
            waits.insert(key, since);
        }
        self.0 = waits;
        found
    }
}

/// A process of the frozen sandbox.
struct Seen {
    pid: HostPid,
    status: Status,
    /// Threads, by their ids outside and inside.
    threads: Vec<(HostPid, InsidePid)>,
    /// A thread is in a wait that ptrace cannot interrupt.
    wait: Option<Wait>,
    /// A thread is running.
    running: bool,
    /// Not all threads have the same credentials.
    mixed: bool,
}

/// As [`look`], after giving the freezer a moment: a thread that is on its way back into a `vfork` wait counts as
/// frozen to the kernel, but could never be let go again once it had been told to stop.
fn look_settled<H: Host + ?Sized>(frozen: &mut Frozen<'_, H>) -> Result<Vec<Seen>, StopError> {
    let start = Instant::now();
    loop {
        let seen = look(frozen, &HashSet::new())?;
        if start.elapsed() > SETTLE_LIMIT || !seen.iter().any(|process| process.running) {
            return Ok(seen);
        }
        rustix::thread::sched_yield();
    }
}

/// Reads which processes there are besides those that are known, and their threads.
fn look<H: Host + ?Sized>(
    frozen: &mut Frozen<'_, H>,
    known: &HashSet<HostPid>,
) -> Result<Vec<Seen>, StopError> {
    let mut pids = frozen.host.pids().map_err(|source| StopError::Host {
        what: "list the processes of",
        source,
    })?;
    pids.retain(|pid| !known.contains(pid));
    pids.sort_unstable();
    let mut found = Vec::with_capacity(pids.len());
    for pid in pids {
        match look_at(pid) {
            Ok(seen) => found.push(seen),
            Err(error) if error.is_gone() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(found)
}

fn look_at(pid: HostPid) -> Result<Seen, TraceError> {
    let status = procfs::status(pid)?;
    let mut seen = Seen {
        pid,
        threads: Vec::new(),
        wait: None,
        running: false,
        mixed: false,
        status,
    };
    if seen.status.threads <= 1 && seen.status.state != 'Z' {
        let (state, inside) = (seen.status.state, InsidePid(seen.status.thread));
        seen.add(pid, inside, state);
        return Ok(seen);
    }
    for tid in procfs::threads(pid)? {
        let status = if tid == pid {
            Ok(seen.status.clone())
        } else {
            procfs::thread_status(pid, tid)
        };
        match status {
            // A first thread that has ended before the others.
            Ok(status) if matches!(status.state, 'Z' | 'X') => {}
            Ok(status) => {
                seen.mixed |= !status.has_credentials_of(&seen.status);
                seen.add(tid, InsidePid(status.thread), status.state);
            }
            Err(error) if error.is_gone() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(seen)
}

impl Seen {
    fn add(&mut self, tid: HostPid, inside: InsidePid, state: char) {
        self.threads.push((tid, inside));
        self.running |= state == 'R';
        if state == 'D' {
            // The freezer of cgroup v1 looks like this, too.
            let place = procfs::read_text(self.pid, &format!("task/{tid}/wchan")).unwrap_or_default();
            if VFORK_PLACES.contains(&place.trim()) {
                self.wait = Some(Wait::Vfork);
            } else if !place.contains("refrigerator") {
                self.wait.get_or_insert(Wait::Other);
            }
        }
    }
}

/// Threads that have been told to stop.
struct Attached {
    seen: Seen,
    tracees: Vec<Thread>,
}

fn hold<H: Host + ?Sized>(
    mut frozen: Frozen<'_, H>,
    seen: Vec<Seen>,
    known_before: Known<'_>,
) -> Result<Tree, StopError> {
    let mut tree = Tree {
        processes: Vec::with_capacity(seen.len()),
        untraceable: Vec::new(),
    };
    let mut attached = Vec::with_capacity(seen.len());
    let mut known = HashSet::new();
    let mut waiting = seen;
    for _ in 0..MAX_ROUNDS {
        for process in waiting {
            known.insert(process.pid);
            attach(process, &mut attached, &mut tree)?;
        }
        // Where the freezer works, nothing can have been born since.
        waiting = look(&mut frozen, &known)?;
        if waiting.is_empty() {
            frozen.thaw()?;
            return wait_all(attached, tree, known_before);
        }
    }
    Err(StopError::TooMany)
}

fn attach(seen: Seen, attached: &mut Vec<Attached>, tree: &mut Tree) -> Result<(), StopError> {
    let mut tracees = Vec::with_capacity(seen.threads.len());
    for &(tid, inside) in &seen.threads {
        match Tracee::seize(tid, OPTIONS) {
            Ok(Some(mut tracee)) => {
                tracee.interrupt()?;
                tracees.push(Thread { tracee, inside });
            }
            Ok(None) => {}
            // A zombie, a process traced by another one, or one the engine has no power over.
            Err(TraceError::Request { source, .. }) if source.raw_os_error() == Some(libc::EPERM) => {
                let status = procfs::status(tid);
                if status.is_ok_and(|status| !matches!(status.state, 'Z' | 'X'))
                    && tree.untraceable.last().is_none_or(|last| last.pid != seen.pid)
                {
                    tree.untraceable.push(Untraceable {
                        pid: seen.pid,
                        status: seen.status.clone(),
                        reason: Reason::Traced,
                    });
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    attached.push(Attached { seen, tracees });
    Ok(())
}

fn wait_all(attached: Vec<Attached>, mut tree: Tree, known: Known<'_>) -> Result<Tree, StopError> {
    let start = Instant::now();
    let mut stuck_threads = Vec::new();
    for Attached { seen, tracees } in attached {
        let mut threads = Vec::with_capacity(tracees.len());
        for mut thread in tracees {
            match thread
                .tracee
                .wait_stopped(STOP_LIMIT.saturating_sub(start.elapsed()))
            {
                Ok(true) => threads.push(thread),
                Ok(false) => stuck_threads.push((seen.status.clone(), thread)),
                Err(error) if error.is_gone() => thread.tracee.abandon(),
                Err(error) => return Err(error.into()),
            }
        }
        if threads.is_empty() {
            continue;
        }
        if threads.iter().all(|thread| thread.tracee.tid() != seen.pid) {
            tree.untraceable.push(Untraceable {
                pid: seen.pid,
                status: seen.status,
                reason: Reason::Leaderless,
            });
            continue;
        }
        let mut process = Process::assemble(seen.pid, seen.status, threads, known)?;
        process.has_mixed_credentials = seen.mixed;
        tree.processes.push(process);
    }
    if let Some((status, _)) = stuck_threads.first() {
        // What the stuck thread waits for may be one of those just stopped: they have to go first.
        let error = stuck(status);
        drop(tree);
        drop(stuck_threads);
        return Err(error);
    }
    Ok(tree)
}

fn in_vfork(status: &Status) -> Refusal {
    Refusal {
        pid: status.inside(),
        name: status.name.clone(),
        what: "a child made by vfork".to_owned(),
        why: "it cannot be stopped before the child has called exec or has ended".to_owned(),
        remedy: "try again when the child has done so".to_owned(),
    }
}

fn stuck(status: &Status) -> StopError {
    StopError::Stuck {
        inside: status.inside(),
        name: status.name.clone(),
        limit_ms: STOP_LIMIT.as_millis(),
    }
}
