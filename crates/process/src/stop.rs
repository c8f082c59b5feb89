//! Stopping every thread of a sandbox at one instant, and holding them.

use std::collections::HashSet;
use std::io;
use std::time::{Duration, Instant};

use deltabox_sys::ptrace::Options;
use thiserror::Error;

use crate::error::TraceError;
use crate::host::Host;
use crate::ids::{Addr, HostPid, InsidePid};
use crate::inject::{Arg, Batch, Injector};
use crate::procfs::{self, Status};
use crate::tracee::Tracee;

/// How long all threads together may take to stop. A thread that waits for a `vfork` child, or for a dead network
/// file system, cannot be stopped at all.
pub const STOP_LIMIT: Duration = Duration::from_millis(2000);

/// Rounds of looking for tasks born while others were being attached. Everything being frozen, two are enough; more
/// only happen where there is no freezer.
const MAX_ROUNDS: usize = 1000;

pub(crate) const OPTIONS: Options = Options::SYSGOOD
    .with(Options::SUSPEND_SECCOMP)
    .with(Options::TRACE_CLONE)
    .with(Options::TRACE_FORK)
    .with(Options::TRACE_VFORK)
    .with(Options::TRACE_EXEC);

/// Why the sandbox could not be stopped. It runs on.
#[derive(Debug, Error)]
pub enum StopError {
    /// The sandbox refused to freeze or to list its processes.
    #[error("cannot {what} the sandbox: {source}")]
    Host { what: &'static str, source: io::Error },
    /// A thread did not stop in time.
    #[error(
        "process {inside} ({name}) did not stop within {limit_ms} ms: a thread is in an uninterruptible wait (vfork?); try again when it has finished"
    )]
    Stuck {
        inside: InsidePid,
        name: String,
        limit_ms: u128,
    },
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

/// A thread of a [`Process`].
pub struct Thread {
    /// The thread itself.
    pub tracee: Tracee,
    /// Its id as the sandbox sees it.
    pub inside: InsidePid,
}

/// A process all of whose threads are stopped.
pub struct Process {
    pid: HostPid,
    status: Status,
    /// The threads; the first is the leader, if it is still alive.
    pub threads: Vec<Thread>,
    injector: Injector,
}

impl Process {
    /// The process's id as the engine sees it.
    #[must_use]
    pub fn pid(&self) -> HostPid {
        self.pid
    }

    /// The process's id as the sandbox sees it.
    #[must_use]
    pub fn inside(&self) -> InsidePid {
        self.status.inside()
    }

    /// The command name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.status.name
    }

    /// `/proc/PID/status` as it was at the stop.
    #[must_use]
    pub fn status(&self) -> &Status {
        &self.status
    }

    /// Runs one system call in the process's first thread and returns what it returned.
    pub fn call(&mut self, number: i64, args: &[Arg]) -> Result<Result<u64, rustix::io::Errno>, TraceError> {
        let mut batch = Batch::new();
        let id = batch.call(number, args);
        self.run(&mut batch)?;
        Ok(batch.result(id))
    }

    /// Runs all calls of `batch` in the process's first thread, in one round trip.
    pub fn run(&mut self, batch: &mut Batch) -> Result<(), TraceError> {
        self.run_in(0, batch)
    }

    /// Runs all calls of `batch` in the thread at `place` of [`Process::threads`].
    pub fn run_in(&mut self, place: usize, batch: &mut Batch) -> Result<(), TraceError> {
        let thread = self
            .threads
            .get_mut(place)
            .ok_or(TraceError::Gone { tid: self.pid })?;
        self.injector.run(&mut thread.tracee, batch)
    }

    /// Reads memory of the process.
    pub fn read(&self, address: Addr, buffer: &mut [u8]) -> Result<(), TraceError> {
        self.injector.read(address, buffer)
    }

    /// Writes memory of the process; fails where the program itself may not write.
    pub fn write(&self, address: Addr, bytes: &[u8]) -> Result<(), TraceError> {
        self.injector.write(address, bytes)
    }

    /// The injector with the threads it works on.
    pub fn injector(&mut self) -> (&mut Injector, &mut [Thread]) {
        (&mut self.injector, &mut self.threads)
    }

    /// Ends the threads whose ids are not in `keep`. The leader has to stay.
    pub(crate) fn end_threads(&mut self, keep: &[InsidePid]) -> Result<(), TraceError> {
        let threads = std::mem::take(&mut self.threads);
        let (kept, ended): (Vec<_>, Vec<_>) = threads
            .into_iter()
            .partition(|thread| keep.contains(&thread.inside));
        self.threads = kept;
        for thread in ended {
            thread.tracee.exit(self.injector.instruction())?;
        }
        Ok(())
    }

    /// Makes the threads of `wanted` that are missing. They hold nothing of their own yet.
    pub(crate) fn create_threads<H: Host + ?Sized>(
        &mut self,
        host: &mut H,
        wanted: &[InsidePid],
    ) -> Result<(), StopError> {
        const FLAGS: i32 = libc::CLONE_VM
            | libc::CLONE_FS
            | libc::CLONE_FILES
            | libc::CLONE_SIGHAND
            | libc::CLONE_THREAD
            | libc::CLONE_SYSVSEM;
        for &inside in wanted {
            if self.threads.iter().any(|thread| thread.inside == inside) {
                continue;
            }
            let tracee = self.clone_task(host, inside, FLAGS)?;
            self.threads.push(Thread { tracee, inside });
        }
        self.threads
            .sort_by_key(|thread| wanted.iter().position(|inside| *inside == thread.inside));
        Ok(())
    }

    /// Runs `clone(2)` in the first thread. The new task stops before its first instruction.
    pub(crate) fn clone_task<H: Host + ?Sized>(
        &mut self,
        host: &mut H,
        inside: InsidePid,
        flags: i32,
    ) -> Result<Tracee, StopError> {
        host.set_next_pid(inside).map_err(|source| StopError::Host {
            what: "choose the next pid of",
            source,
        })?;
        let pid = self.pid;
        let thread = self.threads.first_mut().ok_or(TraceError::Gone { tid: pid })?;
        let flags = i64::from(flags).cast_unsigned();
        let mut child = None;
        let result = self.injector.call_with_events(
            &mut thread.tracee,
            libc::SYS_clone,
            [flags, 0, 0, 0, 0, 0],
            |_, message| {
                child = i32::try_from(message).ok().and_then(HostPid::new);
            },
        )?;
        let got = result.map_err(|errno| TraceError::Call {
            pid,
            name: "clone",
            errno,
        })?;
        let child = child.ok_or(TraceError::Gone { tid: pid })?;
        let mut tracee = Tracee::attached(child);
        if !tracee.wait_stopped(STOP_LIMIT)? {
            return Err(TraceError::Stuck { tid: child }.into());
        }
        tracee.set_trap_ignored(self.status.ignores(libc::SIGTRAP));
        if got != inside.0.cast_unsigned().into() {
            return Err(StopError::PidTaken {
                wanted: inside,
                got: InsidePid(i32::try_from(got).unwrap_or(0)),
            });
        }
        Ok(tracee)
    }

    /// The process has called `execve`: nothing injected is left, and system calls are elsewhere.
    pub(crate) fn program_changed(&mut self) -> Result<(), StopError> {
        self.injector.forget();
        let pid = self.pid;
        let first = self.threads.first_mut().ok_or(TraceError::Gone { tid: pid })?;
        self.injector
            .set_instruction(find_instruction(pid, &mut first.tracee)?);
        self.refresh()?;
        Ok(())
    }

    /// Ends the process so that its parent finds the wait status `status`.
    pub(crate) fn end(mut self, status: i32) -> Result<(), TraceError> {
        self.injector.forget();
        let instruction = self.injector.instruction();
        let pid = self.pid;
        let thread = std::mem::take(&mut self.threads)
            .pop()
            .ok_or(TraceError::Gone { tid: pid })?;
        match status & 0x7f {
            0 => thread.tracee.exit_group(instruction, (status >> 8) & 0xff),
            signal => thread.tracee.die_of(instruction, signal),
        }
    }

    /// Takes over a process of one thread that is in ptrace's hands already.
    pub(crate) fn adopt(pid: HostPid, tracee: Tracee) -> Result<Process, StopError> {
        assemble(pid, vec![tracee])?.ok_or(TraceError::Gone { tid: pid }.into())
    }

    /// Reads again who the process is; after it has changed group, session or program.
    pub(crate) fn refresh(&mut self) -> Result<(), TraceError> {
        self.status = procfs::status(self.pid)?;
        Ok(())
    }

    /// Kills the process and waits until it has ended. Its parent still has to wait for it.
    pub(crate) fn kill(mut self) -> Result<(), TraceError> {
        self.injector.forget();
        match rustix::process::kill_process(self.pid.pid(), rustix::process::Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(errno) => {
                return Err(TraceError::Request {
                    tid: self.pid,
                    what: "kill",
                    source: errno.into(),
                });
            }
        }
        // The leader's end is reported after that of all others.
        let mut threads = std::mem::take(&mut self.threads);
        while let Some(thread) = threads.pop() {
            thread.tracee.wait_ended()?;
        }
        Ok(())
    }

    /// Removes the injected memory and puts the registers of all threads back. They stay stopped.
    pub fn settle(&mut self) -> Result<(), TraceError> {
        if let Some(thread) = self.threads.first_mut() {
            self.injector.clear(&mut thread.tracee)?;
        }
        for thread in &mut self.threads {
            thread.tracee.settle()?;
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.settle()
            && !error.is_gone()
        {
            tracing::warn!(pid = self.pid.raw(), %error, "a process could not be put back in order");
        }
    }
}

/// A process that cannot be attached, because another one traces it.
#[derive(Debug, Clone)]
pub struct Untraceable {
    /// The process.
    pub pid: HostPid,
    /// Its status.
    pub status: Status,
}

/// All processes of a sandbox, stopped. Dropping it lets them go.
pub struct Tree {
    /// The processes, in the order of their host pids.
    pub processes: Vec<Process>,
    /// Those that somebody else traces. They are *not* stopped.
    pub untraceable: Vec<Untraceable>,
}

impl Tree {
    /// The process with this pid inside.
    pub fn by_inside(&mut self, pid: InsidePid) -> Option<&mut Process> {
        self.processes.iter_mut().find(|process| process.inside() == pid)
    }

    /// Lets everything go on; reports the first thing that went wrong, having tried all.
    pub fn resume(mut self) -> Result<(), TraceError> {
        let mut first_error = None;
        for process in &mut self.processes {
            if let Err(error) = process.settle()
                && !error.is_gone()
            {
                first_error.get_or_insert(error);
            }
        }
        drop(self);
        first_error.map_or(Ok(()), Err)
    }
}

/// Thaws when dropped, so that no error path leaves a sandbox frozen.
struct Frozen<'h, H: Host + ?Sized> {
    host: &'h mut H,
    thawed: bool,
}

impl<H: Host + ?Sized> Frozen<'_, H> {
    fn thaw(&mut self) -> io::Result<()> {
        self.thawed = true;
        self.host.thaw()
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

/// Stops all processes of the sandbox. On failure nothing stays stopped.
pub fn stop<H: Host + ?Sized>(host: &mut H) -> Result<Tree, StopError> {
    host.freeze().map_err(|source| StopError::Host {
        what: "freeze",
        source,
    })?;
    let mut frozen = Frozen { host, thawed: false };
    let attached = attach_all(&mut frozen)?;
    frozen
        .thaw()
        .map_err(|source| StopError::Host { what: "thaw", source })?;
    wait_all(attached)
}

/// Threads that have been told to stop.
#[derive(Default)]
struct Attached {
    processes: Vec<(HostPid, Vec<Tracee>)>,
    untraceable: Vec<HostPid>,
}

fn attach_all<H: Host + ?Sized>(frozen: &mut Frozen<'_, H>) -> Result<Attached, StopError> {
    let mut attached = Attached::default();
    let mut known = HashSet::new();
    for _ in 0..MAX_ROUNDS {
        let mut found_new = false;
        let mut pids = frozen.host.pids().map_err(|source| StopError::Host {
            what: "list the processes of",
            source,
        })?;
        pids.sort_unstable();
        for pid in pids {
            found_new |= attach_process(pid, &mut known, &mut attached)?;
        }
        if !found_new {
            return Ok(attached);
        }
    }
    Err(StopError::TooMany)
}

/// Attaches to the threads of `pid` that are not `known` yet. `Ok(true)` if there were any.
fn attach_process(
    pid: HostPid,
    known: &mut HashSet<HostPid>,
    attached: &mut Attached,
) -> Result<bool, StopError> {
    let threads = match procfs::threads(pid) {
        Ok(threads) => threads,
        Err(error) if error.is_gone() => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    let mut found_new = false;
    for tid in threads {
        if !known.insert(tid) {
            continue;
        }
        match Tracee::seize(tid, OPTIONS) {
            Ok(Some(mut tracee)) => {
                tracee.interrupt()?;
                found_new = true;
                match attached.processes.iter_mut().find(|(other, _)| *other == pid) {
                    Some((_, tracees)) => tracees.push(tracee),
                    None => attached.processes.push((pid, vec![tracee])),
                }
            }
            Ok(None) => {}
            // A zombie, a process traced by another one, or one the engine has no power over.
            Err(TraceError::Request { source, .. }) if source.raw_os_error() == Some(libc::EPERM) => {
                if procfs::status(tid).is_ok_and(|status| !matches!(status.state, 'Z' | 'X')) {
                    attached.untraceable.push(pid);
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(found_new)
}

fn wait_all(attached: Attached) -> Result<Tree, StopError> {
    let start = Instant::now();
    let mut tree = Tree {
        processes: Vec::with_capacity(attached.processes.len()),
        untraceable: Vec::new(),
    };
    let mut stuck_threads = Vec::new();
    for (pid, tracees) in attached.processes {
        let mut threads = Vec::with_capacity(tracees.len());
        for mut tracee in tracees {
            match tracee.wait_stopped(STOP_LIMIT.saturating_sub(start.elapsed())) {
                Ok(true) => threads.push(tracee),
                Ok(false) => stuck_threads.push((pid, tracee)),
                Err(error) if error.is_gone() => tracee.abandon(),
                Err(error) => return Err(error.into()),
            }
        }
        tree.processes.extend(assemble(pid, threads)?);
    }
    if let Some((pid, _)) = stuck_threads.first() {
        // What the stuck thread waits for may be one of those just stopped: they have to go first.
        let error = stuck(*pid);
        drop(tree);
        drop(stuck_threads);
        return Err(error);
    }
    for pid in attached.untraceable {
        if let Ok(status) = procfs::status(pid)
            && !tree.untraceable.iter().any(|other| other.pid == pid)
        {
            tree.untraceable.push(Untraceable { pid, status });
        }
    }
    Ok(tree)
}

/// `Ok(None)` if all threads are gone.
fn assemble(pid: HostPid, tracees: Vec<Tracee>) -> Result<Option<Process>, StopError> {
    if tracees.is_empty() {
        return Ok(None);
    }
    let status = procfs::status(pid)?;
    let mut threads = Vec::with_capacity(tracees.len());
    for mut tracee in tracees {
        tracee.set_trap_ignored(status.ignores(libc::SIGTRAP));
        let inside = if tracee.tid() == pid {
            InsidePid(status.thread)
        } else {
            procfs::thread_inside(pid, tracee.tid())?
        };
        threads.push(Thread { tracee, inside });
    }
    threads.sort_by_key(|thread| (thread.tracee.tid() != pid, thread.inside));
    let instruction = find_instruction(pid, &mut threads[0].tracee)?;
    Ok(Some(Process {
        pid,
        status,
        threads,
        injector: Injector::new(pid, instruction),
    }))
}

fn stuck(pid: HostPid) -> StopError {
    let status = procfs::status(pid).unwrap_or_default();
    StopError::Stuck {
        inside: status.inside(),
        name: status.name,
        limit_ms: STOP_LIMIT.as_millis(),
    }
}

/// A `syscall` instruction in executable memory of the process: in its vDSO, else the one it is stopped at.
fn find_instruction(pid: HostPid, tracee: &mut Tracee) -> Result<Addr, TraceError> {
    const SYSCALL: [u8; 2] = [0x0f, 0x05];
    const VDSO_SIZE: usize = 8192;
    if let Some(start) = procfs::vdso(pid)? {
        let mut code = [0u8; VDSO_SIZE];
        let got = deltabox_sys::process_vm::read(pid.pid(), start.0, &mut code).unwrap_or(0);
        if let Some(offset) = code[..got].windows(2).position(|pair| pair == SYSCALL) {
            return Ok(start.plus(offset as u64));
        }
    }
    let regs = tracee.context()?.regs;
    let before = Addr(regs.rip.wrapping_sub(2));
    let mut code = [0u8; 2];
    let got = deltabox_sys::process_vm::read(pid.pid(), before.0, &mut code).unwrap_or(0);
    if got == 2 && code == SYSCALL {
        Ok(before)
    } else {
        Err(TraceError::NoInstruction { pid })
    }
}
