//! Processes all of whose threads are stopped, and what can be done to them.

use std::path::Path;
use std::time::{Duration, Instant};

use deltabox_sys::ptrace::Options;

use crate::error::TraceError;
use crate::host::Host;
use crate::ids::{Addr, HostPid, InsidePid};
use crate::inject::{Arg, Batch, Injector};
use crate::memory::maps::{self, Vma};
use crate::procfs::{self, Status};
use crate::stop::{Known, STOP_LIMIT, StopError};
use crate::task::{self, Stat};
use crate::tracee::Tracee;

/// How long an id may stay taken by a thread that is about to be gone.
const PID_LIMIT: Duration = Duration::from_millis(200);

/// How long to wait before an id is asked for again.
const PID_PAUSE: Duration = Duration::from_micros(200);

/// The `syscall` instruction.
const SYSCALL: [u8; 2] = [0x0f, 0x05];

/// How every thread is held.
pub(crate) const OPTIONS: Options = Options::SYSGOOD
    .with(Options::SUSPEND_SECCOMP)
    .with(Options::TRACE_CLONE)
    .with(Options::TRACE_FORK)
    .with(Options::TRACE_VFORK)
    .with(Options::TRACE_EXEC);

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
    stat: Stat,
    /// The mappings, where they have been read and not changed since.
    maps: Option<Vec<Vma>>,
    /// The threads; the first is the leader.
    pub threads: Vec<Thread>,
    /// Its threads differ in what they may do.
    pub(crate) has_mixed_credentials: bool,
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

    /// `/proc/PID/stat` as it was at the stop, or after the engine has last changed what it tells.
    #[must_use]
    pub fn stat(&self) -> &Stat {
        &self.stat
    }

    /// Reads the mappings and keeps them for [`Process::take_maps`]. Nothing may change them in between.
    pub(crate) fn look_at_maps(&mut self) -> Result<&[Vma], TraceError> {
        let maps = self.take_maps()?;
        Ok(self.maps.insert(maps))
    }

    /// The mappings have been changed.
    pub(crate) fn forget_maps(&mut self) {
        self.maps = None;
    }

    /// The mappings, without what the engine has injected.
    pub(crate) fn take_maps(&mut self) -> Result<Vec<Vma>, TraceError> {
        match self.maps.take() {
            Some(maps) => Ok(maps),
            None => Ok(maps::without(
                maps::read(self.pid)?,
                self.injector.scratch_range(),
            )),
        }
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
        wait_until_free(host.init_pid(), inside);
        let start = Instant::now();
        loop {
            host.set_next_pid(inside).map_err(|source| StopError::Host {
                what: "choose the next pid of",
                source,
            })?;
            let (tracee, got) = self.clone_any(flags)?;
            if got == inside {
                return Ok(tracee);
            }
            // The kernel gives an id free a moment after its last owner has disappeared from /proc.
            self.discard(tracee, got, flags)?;
            if start.elapsed() > PID_LIMIT {
                return Err(StopError::PidTaken { wanted: inside, got });
            }
            std::thread::sleep(PID_PAUSE);
        }
    }

    /// Ends a task that has just been cloned.
    fn discard(&mut self, tracee: Tracee, inside: InsidePid, flags: i32) -> Result<(), TraceError> {
        if flags & libc::CLONE_THREAD != 0 {
            return tracee.exit(self.injector.instruction());
        }
        tracee.kill()?;
        let options = libc::WNOHANG | libc::__WALL;
        let args = [inside.0.into(), 0.into(), options.into(), 0.into()];
        // ECHILD: a sibling of this process, or SIGCHLD is ignored.
        self.call(libc::SYS_wait4, &args).map(drop)
    }

    /// Runs `clone(2)`, whatever the id of the new task will be.
    fn clone_any(&mut self, flags: i32) -> Result<(Tracee, InsidePid), StopError> {
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
        Ok((tracee, InsidePid(i32::try_from(got).unwrap_or(0))))
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
        let status = procfs::status(pid)?;
        let inside = InsidePid(status.thread);
        let threads = vec![Thread { tracee, inside }];
        Ok(Process::assemble(pid, status, threads, &|_, _| None)?)
    }

    /// Puts stopped threads together. There is at least one.
    pub(crate) fn assemble(
        pid: HostPid,
        status: Status,
        mut threads: Vec<Thread>,
        known: Known<'_>,
    ) -> Result<Process, TraceError> {
        threads.sort_by_key(|thread| (thread.tracee.tid() != pid, thread.inside));
        for thread in &mut threads {
            thread.tracee.set_trap_ignored(status.ignores(libc::SIGTRAP));
        }
        let first = threads.first_mut().ok_or(TraceError::Gone { tid: pid })?;
        let stat = task::stat(pid)?;
        let instruction = match known(pid, &stat).filter(|&at| is_instruction(pid, at)) {
            Some(instruction) => instruction,
            None => find_instruction(pid, &mut first.tracee)?,
        };
        Ok(Process {
            pid,
            status,
            stat,
            maps: None,
            threads,
            has_mixed_credentials: false,
            injector: Injector::new(pid, instruction),
        })
    }

    /// Reads again who the process is; after it has changed group, session or program.
    pub(crate) fn refresh(&mut self) -> Result<(), TraceError> {
        self.status = procfs::status(self.pid)?;
        self.refresh_stat()
    }

    /// Reads again where the program's parts are.
    pub(crate) fn refresh_stat(&mut self) -> Result<(), TraceError> {
        self.stat = task::stat(self.pid)?;
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
        // The first thread last: if the process was killed, its end is reported after that of all others.
        while self.threads.pop().is_some() {}
    }
}

/// A process that cannot be held.
#[derive(Debug, Clone)]
pub struct Untraceable {
    /// The process.
    pub pid: HostPid,
    /// Its status.
    pub status: Status,
    /// What keeps it from that.
    pub reason: Reason,
}

/// Why a process cannot be held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Another one traces it.
    Traced,
    /// Its first thread has ended before the others: `/proc` tells nothing more of its memory.
    Leaderless,
}

/// All processes of a sandbox, stopped. Dropping it lets them go.
pub struct Tree {
    /// The processes, in the order of their host pids.
    pub processes: Vec<Process>,
    /// Those that cannot be held. They are *not* stopped.
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

/// A thread that has just ended keeps its id for a moment longer than others can tell.
fn wait_until_free(init: HostPid, pid: InsidePid) {
    let start = Instant::now();
    while Path::new(&format!("/proc/{init}/root/proc/{pid}")).exists() && start.elapsed() < PID_LIMIT {
        rustix::thread::sched_yield();
    }
}

/// A `syscall` instruction in executable memory of the process: in its vDSO, else the one it is stopped at.
fn find_instruction(pid: HostPid, tracee: &mut Tracee) -> Result<Addr, TraceError> {
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
    if is_instruction(pid, before) {
        Ok(before)
    } else {
        Err(TraceError::NoInstruction { pid })
    }
}

/// Whether there is a `syscall` instruction at this address.
fn is_instruction(pid: HostPid, at: Addr) -> bool {
    let mut code = [0u8; 2];
    let got = deltabox_sys::process_vm::read(pid.pid(), at.0, &mut code).unwrap_or(0);
    got == 2 && code == SYSCALL
}
