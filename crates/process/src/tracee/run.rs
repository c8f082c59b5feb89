//! Running injected code in a stopped thread.

use std::io;

use deltabox_sys::ptrace::{self, RawSiginfo, UserRegs, event};
use rustix::io::Errno;
use rustix::process::Pid;

use super::wait::{Status, wait};
use super::{CALL_LIMIT, SIGTRAP, StopKind, Tracee};
use crate::error::TraceError;
use crate::ids::Addr;

impl Tracee {
    /// Whether a trap instruction can end injected code without the program being able to tell: a forced `SIGTRAP`
    /// would reset an ignored one to its default, and swallow a pending one.
    fn trap_is_invisible(&mut self) -> Result<bool, TraceError> {
        let context = self.context()?;
        let is_trap = |info: &RawSiginfo| i32::from(info[0]) == SIGTRAP;
        let pending = context.pending.iter().any(is_trap) || context.process_pending.iter().any(is_trap);
        Ok(!pending && !self.trap_ignored)
    }

    /// Blocks all signals, so that none of the program is touched by what is about to run. The trap that ends
    /// injected code must not be blocked: the kernel would reset its action.
    pub(super) fn disturb(&mut self) -> Result<(), TraceError> {
        if !self.mask_changed {
            let open = if self.trap_is_invisible()? {
                1 << (SIGTRAP - 1)
            } else {
                0
            };
            let result = ptrace::set_sigmask(self.tid.pid(), !open);
            self.checked("mask the signals of", result)?;
            self.mask_changed = true;
        }
        self.disturbed = true;
        Ok(())
    }

    /// Runs code at `entry` with `regs` set by `prepare`, until it executes a trap instruction.
    /// `Ok(false)` if that could be noticed by the program: use [`Tracee::call`] instead.
    pub(crate) fn run_to_trap(&mut self, prepare: impl FnOnce(&mut UserRegs)) -> Result<bool, TraceError> {
        if !self.trap_is_invisible()? {
            return Ok(false);
        }
        self.disturb()?;
        let mut regs = self.context()?.regs;
        regs.orig_rax = u64::MAX;
        // Injected code has no stack: sigaltstack(2) refuses changes while rsp is on the alternate one.
        regs.rsp = 0;
        prepare(&mut regs);
        let result = ptrace::set_regs(self.tid.pid(), &regs);
        self.checked("set the registers of", result)?;
        self.go_to_trap(|pid| ptrace::cont(pid, 0))?;
        Ok(true)
    }

    /// Runs one system call as a single step, which costs one stop, and that one inside of the kernel's signal code.
    /// For calls without events; where the trap could be noticed by the program it is run as [`Tracee::call`] does.
    pub(crate) fn step(
        &mut self,
        instruction: Addr,
        number: u64,
        args: [u64; 6],
    ) -> Result<Result<u64, Errno>, TraceError> {
        if !self.trap_is_invisible()? {
            return self.call(instruction, number, args, |_, _| {});
        }
        self.prepare_call(instruction, number, args)?;
        self.go_to_trap(ptrace::step)?;
        self.returned()
    }

    pub(super) fn prepare_call(
        &mut self,
        instruction: Addr,
        number: u64,
        args: [u64; 6],
    ) -> Result<(), TraceError> {
        self.disturb()?;
        let mut regs = self.context()?.regs;
        regs.orig_rax = u64::MAX;
        regs.rsp = 0;
        regs.rax = number;
        regs.rip = instruction.0;
        [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9] = args;
        let result = ptrace::set_regs(self.tid.pid(), &regs);
        self.checked("set the registers of", result)
    }

    /// What the injected call returned.
    fn returned(&self) -> Result<Result<u64, Errno>, TraceError> {
        let regs = ptrace::get_regs(self.tid.pid()).map_err(|source| self.request("read", source))?;
        Ok(decode(regs.rax))
    }

    /// Has the thread go on, by `how`, until it stops at a trap. Stops for other reasons may come first, also before
    /// the thread has gone anywhere.
    fn go_to_trap(&mut self, how: impl Fn(Pid) -> io::Result<()>) -> Result<(), TraceError> {
        loop {
            let result = how(self.tid.pid());
            self.checked("continue", result)?;
            match self.wait_call()? {
                Status::Stopped {
                    signal: SIGTRAP,
                    event: 0,
                } => {
                    self.stop = Some(StopKind::Signal);
                    return Ok(());
                }
                Status::Stopped { signal, event: 0 }
                    if matches!(signal, libc::SIGSEGV | libc::SIGBUS | libc::SIGILL) =>
                {
                    self.stop = Some(StopKind::Signal);
                    return Err(TraceError::Crashed {
                        tid: self.tid,
                        signal,
                    });
                }
                Status::Stopped { signal, event } => self.pass_over(signal, event),
                Status::Ended(status) => return Err(self.died(status)),
            }
        }
    }

    /// Runs one system call by stepping from its entry to its exit. `instruction` is the address of a `syscall`
    /// instruction of the program. Events of `clone` and `execve` are reported to `on_event`.
    pub(crate) fn call(
        &mut self,
        instruction: Addr,
        number: u64,
        args: [u64; 6],
        mut on_event: impl FnMut(i32, u64),
    ) -> Result<Result<u64, Errno>, TraceError> {
        self.prepare_call(instruction, number, args)?;
        let mut entered = false;
        loop {
            let result = ptrace::cont_to_syscall(self.tid.pid(), 0);
            self.checked("continue", result)?;
            match self.wait_call()? {
                Status::Stopped { signal, event: 0 } if signal == SIGTRAP | 0x80 => {
                    self.stop = Some(StopKind::SyscallExit);
                    if entered {
                        break;
                    }
                    entered = true;
                }
                Status::Stopped {
                    signal: SIGTRAP,
                    event,
                } if event != 0 && event != event::STOP => {
                    let message = ptrace::event_message(self.tid.pid());
                    on_event(event, message.map_err(|source| self.request("read", source))?);
                }
                Status::Stopped { signal, event: 0 }
                    if matches!(signal, libc::SIGSEGV | libc::SIGBUS | libc::SIGILL) =>
                {
                    return Err(TraceError::Crashed {
                        tid: self.tid,
                        signal,
                    });
                }
                Status::Stopped { signal, event } => self.pass_over(signal, event),
                Status::Ended(status) => return Err(self.died(status)),
            }
        }
        self.returned()
    }

    /// A stop that is not ours: remembers a `SIGSTOP` so that it is not lost.
    pub(super) fn pass_over(&mut self, signal: i32, event: i32) {
        if event == 0 && signal != SIGTRAP {
            self.held_signal = signal;
        }
    }

    pub(super) fn wait_call(&mut self) -> Result<Status, TraceError> {
        wait(self.tid, CALL_LIMIT)?.ok_or(TraceError::Stuck { tid: self.tid })
    }
}

/// Splits a raw system call result.
pub fn decode(raw: u64) -> Result<u64, Errno> {
    let signed = raw.cast_signed();
    if (-4095..0).contains(&signed) {
        Err(Errno::from_raw_os_error(
            i32::try_from(-signed).unwrap_or(libc::EIO),
        ))
    } else {
        Ok(raw)
    }
}
