//! pidfd: a process or thread, or one that is gone.

use std::os::fd::OwnedFd;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

use super::error::{Error, bad_state, making};
use super::live::{Live, LiveDescription};
use crate::ids::{HostPid, InsidePid};
use crate::procfs;

/// A pidfd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The process or thread, by its number inside the sandbox; `None` once it is reaped.
    pub target: Option<InsidePid>,
}

/// `PIDFD_THREAD` (6.9): the descriptor is of a thread.
const THREAD: u32 = libc::O_EXCL as u32;

pub(super) fn capture(live: &LiveDescription) -> Result<State, Error> {
    // `NSpid` ends with the number in the innermost namespace; of a reaped process it is -1.
    let inner = live
        .field("NSpid")
        .or(live.field("Pid"))
        .and_then(|text| text.split_whitespace().last());
    let inner = inner.and_then(|text| text.parse::<i64>().ok());
    let inner = inner.ok_or_else(|| bad_state("a pidfd", "its process cannot be read from fdinfo"))?;
    Ok(State {
        target: i32::try_from(inner).ok().filter(|&pid| pid > 0).map(InsidePid),
    })
}

/// The live descriptor leads to the process that has the wanted number now.
pub(super) fn same(wanted: &State, flags: u32, live: &LiveDescription) -> bool {
    (flags ^ live.flags) & THREAD == 0 && capture(live).is_ok_and(|now| now == *wanted)
}

pub(super) fn make(wanted: &State, flags: u32, live: &Live) -> Result<OwnedFd, Error> {
    let open = |pid| pidfd_open(pid, PidfdFlags::from_bits_retain(flags & THREAD));
    match wanted.target {
        Some(number) => open(find(live, number)?).map_err(making("a pidfd")),
        None => of_the_dead().map_err(making("a pidfd of a process that is gone")),
    }
}

fn find(live: &Live, number: InsidePid) -> Result<Pid, Error> {
    if let Some(process) = live.processes.iter().find(|p| p.number == number) {
        return Ok(process.pid);
    }
    // A thread, or a zombie, which has no table and so is no member: ask the kernel for the numbers.
    for process in &live.processes {
        for thread in threads(process.pid) {
            if inner_number(process.pid, thread) == Some(number) {
                return Ok(thread);
            }
            let children = procfs::children(process.pid.into(), thread.into()).unwrap_or_default();
            for child in children.into_iter().map(HostPid::pid) {
                if inner_number(child, child) == Some(number) {
                    return Ok(child);
                }
            }
        }
    }
    Err(bad_state(
        format!("a pidfd of process {number}"),
        "the sandbox has no such process",
    ))
}

fn threads(pid: Pid) -> Vec<Pid> {
    let Ok(entries) = std::fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero())) else {
        return Vec::new();
    };
    let number = |entry: std::fs::DirEntry| entry.file_name().to_str()?.parse().ok();
    entries
        .flatten()
        .filter_map(number)
        .filter_map(Pid::from_raw)
        .collect()
}

fn inner_number(pid: Pid, thread: Pid) -> Option<InsidePid> {
    let path = format!(
        "/proc/{}/task/{}/status",
        pid.as_raw_nonzero(),
        thread.as_raw_nonzero()
    );
    let text = std::fs::read_to_string(path).ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix("NSpid:"))?
        .split_whitespace()
        .last()?
        .parse()
        .ok()
        .map(InsidePid)
}

/// A descriptor of something that does not exist any more: a thread of ours that has ended.
fn of_the_dead() -> std::io::Result<OwnedFd> {
    let open = || pidfd_open(rustix::thread::gettid(), PidfdFlags::from_bits_retain(THREAD));
    let ended = std::thread::spawn(open)
        .join()
        .map_err(|_| std::io::Error::other("a thread panicked"))?;
    Ok(ended?)
}
