//! Children of a probe, which end with it.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use deltabox_sys::clone::{ForkOptions, Forked, SingleThreaded, exit_now, fork};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, Signal, WaitOptions};

/// How long a child may take for anything it does here.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// A child process, killed and reaped when dropped.
pub(crate) struct Child {
    pub pid: Pid,
    pub pidfd: OwnedFd,
    reaped: bool,
}

impl Child {
    /// Forks a child that runs `body` and exits with what it returns (0 for success, an errno, or 101 for a panic).
    pub fn new(options: &ForkOptions<'_>, body: impl FnOnce() -> io::Result<()>) -> io::Result<Self> {
        let proof = SingleThreaded::prove()?;
        match fork(&proof, options)? {
            Forked::Child => {
                let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
                let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
                exit_now(match result {
                    Ok(Ok(())) => 0,
                    Ok(Err(error)) => error.raw_os_error().unwrap_or(100),
                    Err(_) => 101,
                })
            }
            Forked::Parent { pid, pidfd } => {
                let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidData)?;
                Ok(Child {
                    pid,
                    pidfd,
                    reaped: false,
                })
            }
        }
    }

    /// A child that does nothing until it is killed.
    pub fn idle() -> io::Result<Self> {
        Child::new(&ForkOptions::default(), || {
            loop {
                std::thread::sleep(PATIENCE);
            }
        })
    }

    /// Whether it has ended within `bound`.
    pub fn ended(&self, bound: Duration) -> bool {
        let timeout = rustix::event::Timespec {
            tv_sec: bound.as_secs() as i64,
            tv_nsec: bound.subsec_nanos().into(),
        };
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        matches!(poll(&mut fds, Some(&timeout)), Ok(n) if n > 0)
    }

    /// Waits for it and turns its exit code back into a result.
    pub fn result(mut self) -> io::Result<()> {
        if !self.ended(PATIENCE) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.reaped = true;
        let status = rustix::process::waitpid(Some(self.pid), WaitOptions::empty())?;
        match status.and_then(|(_, status)| status.exit_status()) {
            Some(0) => Ok(()),
            Some(code @ 1..=99 | code @ 102..) => Err(io::Error::from_raw_os_error(code)),
            Some(_) => Err(io::Error::other("the child failed")),
            None => Err(io::Error::other("the child was killed")),
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.reaped {
            let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
            let _ = rustix::process::waitpid(Some(self.pid), WaitOptions::empty());
        }
    }
}

/// Runs `body` in a child of its own and waits for it.
pub(crate) fn in_child(options: &ForkOptions<'_>, body: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    Child::new(options, body)?.result()
}
