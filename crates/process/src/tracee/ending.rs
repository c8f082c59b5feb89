//! Having a stopped thread end.

use deltabox_sys::ptrace;

use super::Tracee;
use super::wait::Status;
use crate::error::TraceError;
use crate::ids::Addr;

impl Tracee {
    /// Makes the thread end by itself (`exit(2)`), the other threads of its process staying.
    pub(crate) fn exit(self, instruction: Addr) -> Result<(), TraceError> {
        self.last_call(instruction, libc::SYS_exit, [0; 2], 0)
    }

    /// Makes the process of this only thread end with an exit code.
    pub(crate) fn exit_group(self, instruction: Addr, code: i32) -> Result<(), TraceError> {
        self.last_call(
            instruction,
            libc::SYS_exit_group,
            [i64::from(code).cast_unsigned(), 0],
            0,
        )
    }

    /// Makes the process of this only thread die of a signal, without a core file.
    pub(crate) fn die_of(mut self, instruction: Addr, signal: i32) -> Result<(), TraceError> {
        let none = rustix::process::Rlimit {
            current: Some(0),
            maximum: Some(0),
        };
        let _ = rustix::process::prlimit(Some(self.tid.pid()), rustix::process::Resource::Core, none);
        // A new program, or a child made by us: the default action is one exec or one call away at most.
        self.disturb()?;
        let result = ptrace::set_sigmask(self.tid.pid(), 0);
        self.checked("mask the signals of", result)?;
        let pid = i64::from(crate::procfs::status(self.tid)?.process).cast_unsigned();
        self.last_call(
            instruction,
            libc::SYS_kill,
            [pid, i64::from(signal).cast_unsigned()],
            signal,
        )
    }

    /// Runs a call that ends the thread; `signal` is delivered if it comes.
    fn last_call(
        mut self,
        instruction: Addr,
        number: i64,
        args: [u64; 2],
        signal: i32,
    ) -> Result<(), TraceError> {
        if signal == 0 {
            self.disturb()?;
        }
        let mut regs = self.context()?.regs;
        regs.orig_rax = u64::MAX;
        regs.rsp = 0;
        regs.rax = number.cast_unsigned();
        [regs.rdi, regs.rsi] = args;
        regs.rip = instruction.0;
        let result = ptrace::set_regs(self.tid.pid(), &regs);
        self.checked("set the registers of", result)?;
        let mut deliver = 0;
        loop {
            let result = ptrace::cont(self.tid.pid(), deliver);
            self.checked("continue", result)?;
            match self.wait_call() {
                Ok(Status::Ended(status)) => {
                    self.ended = Some(status);
                    return Ok(());
                }
                Ok(Status::Stopped {
                    signal: got,
                    event: 0,
                }) if got == signal => deliver = signal,
                Ok(Status::Stopped { .. }) => deliver = 0,
                Err(error) if error.is_gone() => {
                    self.ended = Some(0);
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Kills the process of this only thread.
    pub(crate) fn kill(self) -> Result<(), TraceError> {
        let killed = rustix::process::kill_process(self.tid.pid(), rustix::process::Signal::KILL);
        if let Err(errno) = killed {
            return Err(self.request("kill", errno.into()));
        }
        self.wait_ended()
    }

    /// Waits for the end of a thread that has been killed.
    pub(crate) fn wait_ended(mut self) -> Result<(), TraceError> {
        loop {
            match self.wait_call() {
                Ok(Status::Ended(status)) => {
                    self.ended = Some(status);
                    return Ok(());
                }
                Ok(Status::Stopped { .. }) => {
                    let result = ptrace::cont(self.tid.pid(), 0);
                    match self.checked("continue", result) {
                        Err(error) if !error.is_gone() => return Err(error),
                        _ => {}
                    }
                }
                Err(error) if error.is_gone() => {
                    self.ended = Some(0);
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
    }
}
