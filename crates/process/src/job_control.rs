//! Job control stops (`SIGSTOP`, `SIGTSTP`, ...) and what parents have been told of them.
//!
//! A parent asks for stops by `waitpid(WUNTRACED)`, and each is told once. What is still to be told is known to the
//! kernel only, which answers the parent alone; so it is asked, and stops are taken note of, by calls in the parent.
//! All of this happens before pending signals are put back, because the kernel sends `SIGCHLD` along.

use rustix::process::{Signal, kill_process};
use serde::{Deserialize, Serialize};

use crate::error::TraceError;
use crate::ids::InsidePid;
use crate::image::Image;
use crate::inject::Batch;
use crate::stop::{Process, Tree};
use crate::thread::word;

/// `sizeof(siginfo_t)`.
const SIGINFO_SIZE: usize = 128;

/// `sizeof(struct sigaction)` of the kernel.
const ACTION_SIZE: usize = 32;

/// `sizeof(sigset_t)` of the kernel.
const SET_SIZE: u32 = 8;

/// A job control stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupStop {
    /// The signal that brought it about.
    pub signal: i32,
    /// The parent has been told.
    pub told: bool,
}

/// The stop the process at `place` is in.
pub(crate) fn of(tree: &mut Tree, place: usize, parent: InsidePid) -> Result<Option<GroupStop>, TraceError> {
    let process = &tree.processes[place];
    let (signal, pid) = (process.group_stop(), process.inside());
    signal
        .map(|signal| {
            let told = !is_to_be_told(tree, parent, pid)?;
            Ok(GroupStop { signal, told })
        })
        .transpose()
}

/// Ends the stops that `image` does not have, begins those it has, and leaves to be told what was to be told.
pub(crate) fn restore(tree: &mut Tree, image: &Image) -> Result<(), TraceError> {
    for wanted in &image.processes {
        let (pid, parent) = (wanted.pid, wanted.parent);
        let Some(process) = tree.by_inside(pid) else {
            continue;
        };
        let now = process.group_stop();
        let Some(stop) = wanted.group_stop else {
            if now.is_some() {
                process.end_group_stop()?;
                take_note(tree, parent, pid, libc::WCONTINUED)?;
            }
            continue;
        };
        let fits =
            now.is_some() && (stop.told || (now == Some(stop.signal) && is_to_be_told(tree, parent, pid)?));
        if !fits && let Some(process) = tree.by_inside(pid) {
            if now.is_some() {
                process.end_group_stop()?;
            }
            process.begin_group_stop(stop.signal)?;
        }
        if stop.told {
            take_note(tree, parent, pid, libc::WSTOPPED)?;
        }
    }
    Ok(())
}

/// Whether the parent will be told of the stop of its child when it asks.
fn is_to_be_told(tree: &mut Tree, parent: InsidePid, child: InsidePid) -> Result<bool, TraceError> {
    let Some(parent) = tree.by_inside(parent) else {
        return Ok(false);
    };
    let mut batch = Batch::new();
    let info = batch.output(SIGINFO_SIZE);
    let options = libc::WSTOPPED | libc::WNOHANG | libc::WNOWAIT;
    let args = [
        libc::P_PID.into(),
        child.0.into(),
        info.into(),
        options.into(),
        0.into(),
    ];
    batch.call(libc::SYS_waitid, &args);
    parent.run(&mut batch)?;
    Ok(word(batch.bytes(info)) != 0)
}

/// Has the parent hear of what its child did, so that it will not be told again.
fn take_note(tree: &mut Tree, parent: InsidePid, child: InsidePid, what: i32) -> Result<(), TraceError> {
    let Some(parent) = tree.by_inside(parent) else {
        return Ok(());
    };
    let options = what | libc::WNOHANG;
    let args = [
        libc::P_PID.into(),
        child.0.into(),
        0.into(),
        options.into(),
        0.into(),
    ];
    // That there is nothing to hear of is as good.
    parent.call(libc::SYS_waitid, &args).map(drop)
}

impl Process {
    /// The signal of the job control stop the process is in.
    fn group_stop(&self) -> Option<i32> {
        let mut threads = self.threads.iter();
        threads.find_map(|thread| thread.tracee.group_stop())
    }

    /// Has the process continue. It stays held, and the signal that did it is not left to it.
    fn end_group_stop(&mut self) -> Result<(), TraceError> {
        let pid = self.pid();
        kill_process(pid.pid(), Signal::CONT).map_err(|errno| TraceError::Request {
            tid: pid,
            what: "continue",
            source: errno.into(),
        })?;
        for thread in &mut self.threads {
            thread.tracee.forget_group_stop();
        }
        // The parent is sent its signal as soon as the process runs, which had better be now.
        let mut batch = Batch::new();
        let signal = batch.input(&bit(libc::SIGCONT).to_ne_bytes());
        let now = batch.input(&[0; 16]);
        batch.call(
            libc::SYS_rt_sigtimedwait,
            &[signal.into(), 0.into(), now.into(), SET_SIZE.into()],
        );
        self.run(&mut batch)
    }

    /// Stops the process as `signal` would, however it may handle that.
    fn begin_group_stop(&mut self, signal: i32) -> Result<(), TraceError> {
        let mut ask = Batch::new();
        let default = ask.input(&[0; ACTION_SIZE]);
        let before = ask.output(ACTION_SIZE);
        ask.call(
            libc::SYS_rt_sigaction,
            &[signal.into(), default.into(), before.into(), SET_SIZE.into()],
        );
        self.run(&mut ask)?;
        // A group without a parent outside of it but in its session cannot be stopped from the keyboard any more.
        if !self.stop_threads(signal)? && !self.stop_threads(libc::SIGSTOP)? {
            return Err(TraceError::Stuck { tid: self.pid() });
        }
        let mut put_back = Batch::new();
        let action = put_back.input(ask.bytes(before));
        put_back.call(
            libc::SYS_rt_sigaction,
            &[signal.into(), action.into(), 0.into(), SET_SIZE.into()],
        );
        self.run(&mut put_back)
    }

    /// `Ok(false)` if the kernel does not let the signal stop this process.
    fn stop_threads(&mut self, signal: i32) -> Result<bool, TraceError> {
        let instruction = self.injector().0.instruction();
        let mut threads = self.threads.iter_mut();
        let Some(first) = threads.next() else {
            return Ok(false);
        };
        if !first.tracee.begin_group_stop(instruction, signal)? {
            return Ok(false);
        }
        for thread in threads {
            thread.tracee.join_group_stop()?;
        }
        Ok(true)
    }
}

/// A set of one signal.
fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}
