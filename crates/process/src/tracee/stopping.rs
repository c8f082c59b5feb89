//! Bringing a job control stop about in a held thread.

use deltabox_sys::ptrace::{self, event};
use rustix::process::{Signal, kill_process};

use super::wait::Status;
use super::{SIGTRAP, StopKind, Tracee};
use crate::error::TraceError;
use crate::ids::Addr;

impl Tracee {
    /// Has the process of this thread begin a job control stop by `signal`, whose action is the default one. The other
    /// threads have to join. `Ok(false)` if the signal was ignored.
    pub(crate) fn begin_group_stop(&mut self, instruction: Addr, signal: i32) -> Result<bool, TraceError> {
        // Reached only if the signal does not stop the process.
        self.prepare_call(instruction, libc::SYS_getpid.cast_unsigned(), [0; 6])?;
        // None of the program's pending signals may come first.
        let result = ptrace::set_sigmask(self.tid.pid(), !(1 << (signal - 1)));
        self.checked("mask the signals of", result)?;
        let sent = kill_process(self.tid.pid(), Signal::STOP);
        sent.map_err(|errno| self.request("stop", errno.into()))?;
        let mut deliver = 0;
        let mut entered = false;
        loop {
            let result = ptrace::cont_to_syscall(self.tid.pid(), deliver);
            self.checked("continue", result)?;
            deliver = 0;
            match self.wait_call()? {
                Status::Stopped {
                    signal: libc::SIGSTOP,
                    event: 0,
                } => deliver = signal,
                Status::Stopped {
                    signal: by,
                    event: event::STOP,
                } if by != SIGTRAP => {
                    self.in_group_stop(by);
                    return Ok(true);
                }
                Status::Stopped { signal, event: 0 } if signal == SIGTRAP | 0x80 => {
                    self.stop = Some(StopKind::SyscallExit);
                    if entered {
                        return Ok(false);
                    }
                    entered = true;
                }
                Status::Stopped { .. } => {}
                Status::Ended(status) => return Err(self.died(status)),
            }
        }
    }

    /// Takes part in the stop that another thread of the process has begun: without that it would not be one.
    pub(crate) fn join_group_stop(&mut self) -> Result<(), TraceError> {
        loop {
            let result = ptrace::cont(self.tid.pid(), 0);
            self.checked("continue", result)?;
            match self.wait_call()? {
                Status::Stopped {
                    signal,
                    event: event::STOP,
                } if signal != SIGTRAP => {
                    self.in_group_stop(signal);
                    return Ok(());
                }
                Status::Stopped { .. } => {}
                Status::Ended(status) => return Err(self.died(status)),
            }
        }
    }

    fn in_group_stop(&mut self, signal: i32) {
        self.group_stop = Some(signal);
        self.stop = Some(StopKind::Signal);
    }
}
