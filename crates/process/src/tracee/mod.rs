//! One stopped thread.
//!
//! A [`Tracee`] owns the ptrace attachment: while it exists the thread stands still (except for the moments in which
//! injected system calls run), and dropping it puts the program's registers back and lets the thread go on. What the
//! program had in its registers is read once and kept ([`Context`]); what runs in between never shows.
//!
//! # Why the last stop matters
//! A system call that was interrupted by the stop ends with one of the kernel's internal `-ERESTART*` results. The
//! kernel turns it into a restart (or `EINTR`) when the thread leaves its *signal* code. The stop of
//! `PTRACE_INTERRUPT` and the one of a trap instruction are inside of the signal code, so restoring the registers
//! there is enough. The stop at the exit of an injected system call is not: the thread would go to user mode with
//! `-ERESTART*` in `rax`. [`Tracee::release`] therefore sends such a thread through one more `PTRACE_INTERRUPT`.

mod ending;
mod run;
mod stopping;
mod wait;

use std::io;
use std::time::{Duration, Instant};

use deltabox_sys::ptrace::{self, Options, Queue, RawSiginfo, RseqConfiguration, UserRegs, event};

pub use run::decode;
pub use wait::{Status, wait};

use crate::error::TraceError;
use crate::ids::HostPid;
use crate::interrupted::{leave_critical_section, make_restartable};

/// The longest an injected system call may take before the engine gives up on the thread.
pub const CALL_LIMIT: Duration = Duration::from_secs(10);

/// How long the end of a killed thread is waited for. The first thread of a process ends only after all others.
const STOP_OF_THE_DEAD: Duration = Duration::from_millis(100);

/// `SIGTRAP`, which the engine keeps unblocked while injected code runs.
const SIGTRAP: i32 = 5;

/// What a thread has in its CPU and signal state while it is stopped, as the program left it.
#[derive(Clone)]
pub struct Context {
    /// General registers. `orig_rax` and `rax` tell of an interrupted system call.
    pub regs: UserRegs,
    /// Blocked signals.
    pub sigmask: u64,
    /// Signals pending for this thread, oldest first.
    pub pending: Vec<RawSiginfo>,
    /// Signals pending for the whole process, oldest first.
    pub process_pending: Vec<RawSiginfo>,
    /// Restartable sequences.
    pub rseq: RseqConfiguration,
}

/// How the thread came to its present stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StopKind {
    /// Inside of the kernel's signal code: a restart is still to be decided.
    Signal,
    /// At the exit of a system call: the signal code has to be entered once more before letting go.
    SyscallExit,
}

/// A thread held by ptrace. See the module's documentation.
pub struct Tracee {
    tid: HostPid,
    /// `Some` once the thread has been seen to stop.
    stop: Option<StopKind>,
    /// The signal of a job control stop the thread is in (`SIGSTOP`, `SIGTSTP`, ...).
    group_stop: Option<i32>,
    context: Option<Context>,
    /// The thread's registers or mask differ at the moment from `context`.
    disturbed: bool,
    mask_changed: bool,
    ended: Option<i32>,
    /// A signal that was taken away from the program and has to be sent again.
    held_signal: i32,
    /// The program ignores `SIGTRAP`.
    trap_ignored: bool,
}

impl Tracee {
    /// Attaches to a running thread without stopping it. `Ok(None)` if there is no such thread (any more).
    pub fn seize(tid: HostPid, options: Options) -> Result<Option<Tracee>, TraceError> {
        match ptrace::seize(tid.pid(), options) {
            Ok(()) => Ok(Some(Tracee::attached(tid))),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
            Err(source) => Err(TraceError::Request {
                tid,
                what: "attach to",
                source,
            }),
        }
    }

    /// Takes over a thread that the kernel attached by itself, as the child of a traced thread.
    #[must_use]
    pub fn attached(tid: HostPid) -> Tracee {
        Tracee {
            tid,
            stop: None,
            group_stop: None,
            context: None,
            disturbed: false,
            mask_changed: false,
            ended: None,
            held_signal: 0,
            trap_ignored: false,
        }
    }

    /// Tells whether the program ignores `SIGTRAP`, in which case no trap instruction may be used.
    pub fn set_trap_ignored(&mut self, ignored: bool) {
        self.trap_ignored = ignored;
    }

    /// Asks the thread to stop. Returns at once.
    pub fn interrupt(&mut self) -> Result<(), TraceError> {
        let result = ptrace::interrupt(self.tid.pid());
        self.checked("interrupt", result)
    }

    /// Waits until the thread has stopped after [`Tracee::interrupt`]. `Ok(false)` if it has not within `limit`.
    pub fn wait_stopped(&mut self, limit: Duration) -> Result<bool, TraceError> {
        let start = Instant::now();
        loop {
            match wait(self.tid, limit.saturating_sub(start.elapsed()))? {
                None => return Ok(false),
                Some(Status::Ended(status)) => return Err(self.died(status)),
                Some(Status::Stopped {
                    signal,
                    event: event::STOP,
                }) => {
                    self.group_stop = (signal != SIGTRAP).then_some(signal);
                    self.stop = Some(StopKind::Signal);
                    return Ok(true);
                }
                // Another stop came first, and any stop uses up the interrupt: ask again.
                Some(Status::Stopped { signal, event }) => {
                    self.interrupt()?;
                    let result = ptrace::cont(self.tid.pid(), if event == 0 { signal } else { 0 });
                    self.checked("continue", result)?;
                }
            }
        }
    }

    /// The thread's id.
    #[must_use]
    pub fn tid(&self) -> HostPid {
        self.tid
    }

    /// The signal of the job control stop the program had put the thread in, if any.
    #[must_use]
    pub fn group_stop(&self) -> Option<i32> {
        self.group_stop
    }

    /// The job control stop is over.
    pub(crate) fn forget_group_stop(&mut self) {
        self.group_stop = None;
    }

    /// The raw wait status if the thread has ended.
    #[must_use]
    pub fn ended(&self) -> Option<i32> {
        self.ended
    }

    /// What the program left in the thread. Read once per stop.
    pub fn context(&mut self) -> Result<&Context, TraceError> {
        self.context_mut().map(|context| &*context)
    }

    /// As [`Tracee::context`], to be changed: registers and mask take effect when the thread is let go.
    pub fn context_mut(&mut self) -> Result<&mut Context, TraceError> {
        if self.context.is_none() {
            let pid = self.tid.pid();
            let read = || -> io::Result<Context> {
                Ok(Context {
                    regs: ptrace::get_regs(pid)?,
                    sigmask: ptrace::get_sigmask(pid)?,
                    pending: pending(self.tid, Queue::Thread)?,
                    process_pending: pending(self.tid, Queue::Process)?,
                    rseq: ptrace::get_rseq(pid)?,
                })
            };
            match read() {
                Ok(mut context) => {
                    leave_critical_section(self.tid, &mut context);
                    if make_restartable(&mut context.regs) {
                        self.disturbed = true;
                    }
                    self.context = Some(context);
                }
                Err(source) => {
                    return Err(self.request("read", source));
                }
            }
        }
        self.context.as_mut().ok_or(TraceError::Gone { tid: self.tid })
    }

    /// Replaces what the program will find in its registers and signal mask.
    pub fn set_program(&mut self, regs: UserRegs, sigmask: u64) -> Result<(), TraceError> {
        let context = self.context_mut()?;
        context.regs = regs;
        if context.sigmask != sigmask {
            context.sigmask = sigmask;
            self.mask_changed = true;
        }
        self.disturbed = true;
        Ok(())
    }

    /// The context belongs to a program that is no more; the thread is at the exit of `execve`.
    pub(crate) fn forget_context(&mut self) {
        self.context = None;
        self.disturbed = false;
        self.mask_changed = false;
        self.trap_ignored = false;
    }

    /// Reads the pending signals again: the engine's own doing may have caused some.
    pub(crate) fn refresh_pending(&mut self) -> Result<(), TraceError> {
        let tid = self.tid;
        let (thread, process) = (pending(tid, Queue::Thread), pending(tid, Queue::Process));
        let thread = thread.map_err(|source| self.request("read", source))?;
        let process = process.map_err(|source| self.request("read", source))?;
        self.context()?;
        self.set_pending(thread, process);
        Ok(())
    }

    /// Tells that the pending signals have been changed by injected calls.
    pub(crate) fn set_pending(&mut self, thread: Vec<RawSiginfo>, process: Vec<RawSiginfo>) {
        if let Some(context) = &mut self.context {
            context.pending = thread;
            context.process_pending = process;
        }
    }

    /// From now on until the thread is let go, no trap instruction is used and `SIGTRAP` is blocked as well: a pending
    /// one is about to be queued.
    pub(crate) fn block_traps(&mut self) -> Result<(), TraceError> {
        self.trap_ignored = true;
        self.context()?;
        let result = ptrace::set_sigmask(self.tid.pid(), u64::MAX);
        self.checked("mask the signals of", result)?;
        self.mask_changed = true;
        Ok(())
    }

    /// The extended CPU state in XSAVE layout.
    pub fn xstate(&self) -> Result<Vec<u8>, TraceError> {
        let mut buffer = vec![0; 16 << 10];
        let size = ptrace::get_regset(self.tid.pid(), ptrace::NT_X86_XSTATE, &mut buffer)
            .map_err(|source| self.request("read the CPU state of", source))?;
        buffer.truncate(size);
        Ok(buffer)
    }

    /// Sets the extended CPU state.
    pub fn set_xstate(&self, state: &[u8]) -> Result<(), TraceError> {
        ptrace::set_regset(self.tid.pid(), ptrace::NT_X86_XSTATE, state)
            .map_err(|source| self.request("set the CPU state of", source))
    }

    /// Puts registers and signal mask back as [`Tracee::context`] says, the thread staying stopped where the kernel
    /// will do the right thing about an interrupted system call.
    pub fn settle(&mut self) -> Result<(), TraceError> {
        if !self.disturbed && !self.mask_changed {
            return Ok(());
        }
        let Some(context) = &self.context else {
            return Ok(());
        };
        let (regs, mask) = (context.regs, context.sigmask);
        let result = ptrace::set_regs(self.tid.pid(), &regs);
        self.checked("set the registers of", result)?;
        if self.stop == Some(StopKind::SyscallExit) {
            self.enter_signal_code()?;
        }
        if self.mask_changed {
            let result = ptrace::set_sigmask(self.tid.pid(), mask);
            self.checked("mask the signals of", result)?;
        }
        self.mask_changed = false;
        self.disturbed = false;
        Ok(())
    }

    fn enter_signal_code(&mut self) -> Result<(), TraceError> {
        self.interrupt()?;
        loop {
            let result = ptrace::cont(self.tid.pid(), 0);
            self.checked("continue", result)?;
            match self.wait_call()? {
                Status::Stopped {
                    event: event::STOP, ..
                } => break,
                Status::Stopped { signal, event } => self.pass_over(signal, event),
                Status::Ended(status) => return Err(self.died(status)),
            }
        }
        self.stop = Some(StopKind::Signal);
        Ok(())
    }

    /// Puts everything back and lets the thread go on.
    pub fn release(mut self) -> Result<(), TraceError> {
        self.let_go()
    }

    fn let_go(&mut self) -> Result<(), TraceError> {
        if self.ended.is_some() {
            return Ok(());
        }
        if self.stop.is_none() {
            // Only a stopped thread can be detached.
            self.interrupt()?;
            if !self.wait_stopped(CALL_LIMIT)? {
                return Err(TraceError::Stuck { tid: self.tid });
            }
        }
        let settled = self.settle();
        let result = ptrace::detach(self.tid.pid(), 0);
        if let Err(error) = self.checked("detach from", result) {
            if error.is_gone() && self.ended.is_none() {
                self.bury();
            }
            return Err(error);
        }
        self.ended = Some(0);
        if self.held_signal != 0
            && let Some(signal) = rustix::process::Signal::from_named_raw(self.held_signal)
        {
            let _ = rustix::process::kill_process(self.tid.pid(), signal);
        }
        settled
    }

    /// Takes note of the end of a thread that was killed while it was held. Until its tracer has done so it is a zombie,
    /// and neither its parent nor its PID namespace can be done with it.
    fn bury(&mut self) {
        match wait(self.tid, STOP_OF_THE_DEAD) {
            Ok(Some(Status::Ended(status))) => self.ended = Some(status),
            _ => self.ended = Some(0),
        }
    }

    /// Gives up the attachment without letting the thread go on: it has been killed or detached by other means.
    pub(crate) fn abandon(mut self) {
        self.ended = Some(0);
    }

    fn died(&mut self, status: i32) -> TraceError {
        self.ended = Some(status);
        TraceError::Died {
            tid: self.tid,
            status,
        }
    }

    fn request(&self, what: &'static str, source: io::Error) -> TraceError {
        if source.raw_os_error() == Some(libc::ESRCH) {
            TraceError::Gone { tid: self.tid }
        } else {
            TraceError::Request {
                tid: self.tid,
                what,
                source,
            }
        }
    }

    fn checked(&mut self, what: &'static str, result: io::Result<()>) -> Result<(), TraceError> {
        result.map_err(|source| self.request(what, source))
    }
}

impl Drop for Tracee {
    fn drop(&mut self) {
        if let Err(error) = self.let_go() {
            tracing::debug!(tid = self.tid.raw(), %error, "a thread could not be let go in order");
        }
    }
}

/// All pending signals of a queue.
fn pending(tid: HostPid, queue: Queue) -> io::Result<Vec<RawSiginfo>> {
    let mut limit = 8;
    loop {
        let found = ptrace::peek_siginfo(tid.pid(), queue, limit)?;
        if found.len() < limit {
            return Ok(found);
        }
        limit *= 8;
    }
}
