//! What `/proc` says of a process, as far as it is needed on every stop.

use std::fs;
use std::io;

use rustix::fs::{Mode, OFlags};

use crate::error::TraceError;
use crate::ids::{Addr, HostPid, InsidePid};

/// Room for one read: more than what any file but `maps` holds.
const ROOM: usize = 16 << 10;

/// Reads a file of `/proc/PID` as bytes. The kernel makes the text at the first read, whose size it does not tell
/// before, so asking for little at first and then for more (`std::fs::read`) costs four times as many calls.
pub fn read(pid: HostPid, file: &str) -> Result<Vec<u8>, TraceError> {
    let failed = |errno: rustix::io::Errno| failed(pid, file, errno.into());
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let open = rustix::fs::open(format!("/proc/{pid}/{file}"), flags, Mode::empty()).map_err(failed)?;
    let mut text = Vec::with_capacity(ROOM);
    loop {
        if text.capacity() - text.len() < ROOM / 2 {
            text.reserve(text.len());
        }
        match rustix::io::read(&open, rustix::buffer::spare_capacity(&mut text)) {
            Ok(0) => return Ok(text),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(failed(errno)),
        }
    }
}

/// Reads a file of `/proc/PID` as text.
pub fn read_text(pid: HostPid, file: &str) -> Result<String, TraceError> {
    Ok(String::from_utf8_lossy(&read(pid, file)?).into_owned())
}

/// An error about a file of `/proc/PID`; a process that is gone is told apart.
pub fn failed(pid: HostPid, file: &str, source: io::Error) -> TraceError {
    match source.raw_os_error() {
        Some(libc::ESRCH | libc::ENOENT) => TraceError::Gone { tid: pid },
        _ => TraceError::Proc {
            pid,
            file: file.to_owned(),
            source,
        },
    }
}

/// A file that does not look as documented.
pub fn malformed(pid: HostPid, file: &str) -> TraceError {
    failed(
        pid,
        file,
        io::Error::new(io::ErrorKind::InvalidData, "not in the documented form"),
    )
}

/// The threads of a process, in the order of their creation as the kernel lists them.
pub fn threads(pid: HostPid) -> Result<Vec<HostPid>, TraceError> {
    let entries = fs::read_dir(format!("/proc/{pid}/task")).map_err(|source| failed(pid, "task", source))?;
    let mut found = Vec::new();
    for entry in entries {
        let entry = match entry {
            Ok(entry) => entry,
            Err(source) => return Err(failed(pid, "task", source)),
        };
        let tid = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
            .and_then(HostPid::new);
        found.extend(tid);
    }
    Ok(found)
}

/// The children of one thread (`CONFIG_PROC_CHILDREN`).
pub fn children(pid: HostPid, tid: HostPid) -> Result<Vec<HostPid>, TraceError> {
    let text = read_text(pid, &format!("task/{tid}/children"))?;
    Ok(text
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .filter_map(HostPid::new)
        .collect())
}

/// What is needed of `/proc/PID/status`.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// The command name, escaped as the kernel does it.
    pub name: String,
    /// State letter.
    pub state: char,
    /// Process (thread group), as seen inside.
    pub process: i32,
    /// Thread id, as seen inside.
    pub thread: i32,
    /// Process group, as seen inside (0: outside of the sandbox).
    pub group: i32,
    /// Session, as seen inside (0: outside of the sandbox).
    pub session: i32,
    /// Host pid of the tracer; 0 if none.
    pub tracer: i32,
    /// Host pid of the parent.
    pub parent: i32,
    /// File mode creation mask.
    pub umask: u32,
    /// Real, effective, saved and filesystem user ids, in the engine's user namespace.
    pub uids: [u32; 4],
    /// The same of the group.
    pub gids: [u32; 4],
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Ignored signals.
    pub ignored: u64,
    /// Caught signals.
    pub caught: u64,
    /// Inheritable, permitted, effective, bounding, ambient capabilities.
    pub capabilities: [u64; 5],
    /// `no_new_privs` is set.
    pub no_new_privs: bool,
    /// Seccomp mode: 0 none, 1 strict, 2 filter.
    pub seccomp: u32,
    /// Number of seccomp filters.
    pub seccomp_filters: u32,
    /// Locked memory in kB.
    pub locked_kb: u64,
    /// Number of threads.
    pub threads: u32,
    /// Transparent huge pages are allowed (`PR_SET_THP_DISABLE` not set).
    pub thp_enabled: bool,
}

/// Reads `/proc/PID/status`.
pub fn status(pid: HostPid) -> Result<Status, TraceError> {
    parse_status(&read_text(pid, "status")?).ok_or_else(|| malformed(pid, "status"))
}

fn parse_status(text: &str) -> Option<Status> {
    let mut status = Status {
        thp_enabled: true,
        ..Status::default()
    };
    for line in text.lines() {
        let Some((key, value)) = line.split_once(':') else {
            continue;
        };
        let value = value.trim();
        let hex = || u64::from_str_radix(value, 16).ok();
        let innermost = || {
            value
                .split_whitespace()
                .next_back()
                .and_then(|word| word.parse::<i32>().ok())
        };
        match key {
            "Name" => value.clone_into(&mut status.name),
            "State" => status.state = value.chars().next()?,
            "Umask" => status.umask = u32::from_str_radix(value, 8).ok()?,
            "NStgid" => status.process = innermost()?,
            "NSpid" => status.thread = innermost()?,
            "NSpgid" => status.group = innermost()?,
            "NSsid" => status.session = innermost()?,
            "TracerPid" => status.tracer = value.parse().ok()?,
            "PPid" => status.parent = value.parse().ok()?,
            "Uid" => status.uids = four(value)?,
            "Gid" => status.gids = four(value)?,
            "Groups" => {
                status.groups = value
                    .split_whitespace()
                    .map(str::parse)
                    .collect::<Result<_, _>>()
                    .ok()?;
            }
            "SigIgn" => status.ignored = hex()?,
            "SigCgt" => status.caught = hex()?,
            "CapInh" => status.capabilities[0] = hex()?,
            "CapPrm" => status.capabilities[1] = hex()?,
            "CapEff" => status.capabilities[2] = hex()?,
            "CapBnd" => status.capabilities[3] = hex()?,
            "CapAmb" => status.capabilities[4] = hex()?,
            "NoNewPrivs" => status.no_new_privs = value == "1",
            "Seccomp" => status.seccomp = value.parse().ok()?,
            "Seccomp_filters" => status.seccomp_filters = value.parse().ok()?,
            "VmLck" => status.locked_kb = value.split_whitespace().next()?.parse().ok()?,
            "Threads" => status.threads = value.parse().ok()?,
            "THP_enabled" => status.thp_enabled = value == "1",
            _ => {}
        }
    }
    (status.process != 0).then_some(status)
}

fn four(value: &str) -> Option<[u32; 4]> {
    let words: Vec<u32> = value
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()
        .ok()?;
    words.try_into().ok()
}

impl Status {
    /// Whether two threads may do the same.
    #[must_use]
    pub fn has_credentials_of(&self, other: &Status) -> bool {
        let all = |of: &Status| {
            let seccomp = (of.seccomp, of.seccomp_filters);
            (of.uids, of.gids, of.capabilities, of.no_new_privs, seccomp)
        };
        all(self) == all(other) && self.groups == other.groups
    }

    /// The process's id inside.
    #[must_use]
    pub fn inside(&self) -> InsidePid {
        InsidePid(self.process)
    }

    /// Whether a signal is ignored.
    #[must_use]
    pub fn ignores(&self, signal: i32) -> bool {
        self.ignored & (1 << (signal - 1)) != 0
    }
}

/// The status of one thread.
pub fn thread_status(pid: HostPid, tid: HostPid) -> Result<Status, TraceError> {
    let file = format!("task/{tid}/status");
    parse_status(&read_text(pid, &file)?).ok_or_else(|| malformed(pid, &file))
}

/// Where the vDSO of a process was mapped when it started its program.
pub fn vdso(pid: HostPid) -> Result<Option<Addr>, TraceError> {
    const AT_SYSINFO_EHDR: u64 = 33;
    let auxv = read(pid, "auxv")?;
    let words: Vec<u64> = auxv
        .chunks_exact(8)
        .map(|word| word.try_into().map_or(0, u64::from_ne_bytes))
        .collect();
    Ok(words
        .chunks_exact(2)
        .find(|pair| pair[0] == AT_SYSINFO_EHDR)
        .map(|pair| Addr(pair[1])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_status_is_understood() {
        let me = HostPid::from(rustix::process::getpid());
        let status = status(me).unwrap();
        assert_eq!(status.process, me.raw());
        assert_eq!(
            status.parent,
            rustix::process::getppid().unwrap().as_raw_nonzero().get()
        );
        assert!(status.threads >= 1);
        assert!(threads(me).unwrap().contains(&me));
        assert!(vdso(me).unwrap().is_some());
    }

    #[test]
    fn the_innermost_id_is_taken() {
        let text = "Name:\tx\nState:\tS (sleeping)\nNStgid:\t100\t7\nNSpid:\t101\t8\nNSpgid:\t100\t7\nNSsid:\t5\t0\n";
        let status = parse_status(text).unwrap();
        assert_eq!(
            (status.process, status.thread, status.group, status.session),
            (7, 8, 7, 0)
        );
        assert!(parse_status("Name:\tx\n").is_none());
    }
}
