//! Finding out what cannot be carried, before anything is touched.

use std::fmt;

use rustix::io::Errno;
use thiserror::Error;

use crate::descriptor;
use crate::error::TraceError;
use crate::ids::InsidePid;
use crate::memory::maps::{Kind, Vma};
use crate::stop::{Process, Reason, Tree};

/// Something that cannot be carried over a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The process, as the sandbox sees it.
    pub pid: InsidePid,
    /// Its command name.
    pub name: String,
    /// What it has.
    pub what: String,
    /// Why that cannot be carried.
    pub why: String,
    /// What to do.
    pub remedy: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Refusal {
            pid,
            name,
            what,
            why,
            remedy,
        } = self;
        write!(f, "process {pid} ({name}): {what}: {why}; {remedy}")
    }
}

/// The sandbox cannot be captured as it is; nothing has been changed.
#[derive(Debug, Error)]
pub enum SurveyError {
    /// Everything that stands in the way.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Refused(Vec<Refusal>),
    /// Anything ptrace says.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// The descriptors could not be looked at.
    #[error(transparent)]
    Descriptors(#[from] descriptor::Error),
}

/// `cs` of 64-bit programs.
const CODE_SEGMENT_64: u64 = 0x33;

/// Looks at everything but descriptors.
pub fn refusals(tree: &mut Tree) -> Result<Vec<Refusal>, TraceError> {
    let mut found = Vec::new();
    for process in &tree.untraceable {
        let (what, why, remedy) = match process.reason {
            Reason::Traced => (
                "a debugger",
                format!(
                    "it is traced by the process with host pid {}",
                    process.status.tracer
                ),
                "end the debugger (gdb, strace, ...) first",
            ),
            Reason::Leaderless => (
                "threads without a leader",
                "its first thread has ended while others run on".to_owned(),
                "let the first thread wait for the others",
            ),
        };
        found.push(Refusal {
            pid: process.status.inside(),
            name: process.status.name.clone(),
            what: what.to_owned(),
            why,
            remedy: remedy.to_owned(),
        });
    }
    for process in &mut tree.processes {
        process_refusals(process, &mut found)?;
    }
    shared_memory_maps(tree, &mut found)?;
    Ok(found)
}

fn process_refusals(process: &mut Process, found: &mut Vec<Refusal>) -> Result<(), TraceError> {
    let (pid, name) = (process.inside(), process.name().to_owned());
    let mut refuse = |what: &str, why: &str, remedy: &str| {
        let (what, why, remedy) = (what.to_owned(), why.to_owned(), remedy.to_owned());
        found.push(Refusal {
            pid,
            name: name.clone(),
            what,
            why,
            remedy,
        });
    };
    if process.has_mixed_credentials {
        refuse(
            "threads with different credentials",
            "users, groups, capabilities and system call filters are kept for the process as a whole",
            "give all threads the same",
        );
    }
    for thread in &mut process.threads {
        if thread.tracee.context()?.regs.cs != CODE_SEGMENT_64 {
            refuse(
                "32-bit code",
                "only 64-bit programs can be carried",
                "use a 64-bit build of the program",
            );
            break;
        }
    }
    for vma in process.look_at_maps()? {
        if let Some((what, why, remedy)) = mapping_refusal(vma) {
            refuse(&what, why, remedy);
        }
    }
    Ok(())
}

/// Why a mapping cannot be carried.
fn mapping_refusal(vma: &Vma) -> Option<(String, &'static str, &'static str)> {
    let (Kind::PrivateFile(backing) | Kind::Shared(backing)) = &vma.kind else {
        return None;
    };
    let path = backing.path.trim_end_matches(" (deleted)");
    let what = format!("a mapping of {path} at {:#x}", vma.start);
    if path.starts_with("anon_inode:") || path.starts_with("/[aio]") || path.starts_with("socket:") {
        return Some((
            what,
            "it is shared with the kernel (io_uring, asynchronous I/O, perf, packet sockets)",
            "have the program use ordinary system calls instead, or end it first",
        ));
    }
    if path.starts_with("/anon_hugepage") || path.starts_with("/dev/hugepages") {
        return Some((
            what,
            "huge pages of hugetlbfs cannot be carried",
            "use transparent huge pages instead",
        ));
    }
    let memory = ["/dev/zero", "/dev/shm/"];
    if path.starts_with("/dev/") && !memory.iter().any(|known| path.starts_with(known)) {
        return Some((
            what,
            "the memory of a device cannot be carried",
            "end the program first",
        ));
    }
    None
}

/// Processes that run in one address space without being threads of one process.
fn shared_memory_maps(tree: &Tree, found: &mut Vec<Refusal>) -> Result<(), TraceError> {
    for (place, process) in tree.processes.iter().enumerate() {
        for other in &tree.processes[place + 1..] {
            let related = other.status().parent == process.pid().raw()
                || process.status().parent == other.pid().raw()
                || process.status().parent == other.status().parent;
            if related && same_memory(process, other)? {
                found.push(Refusal {
                    pid: other.inside(),
                    name: other.name().to_owned(),
                    what: format!("memory in common with process {}", process.inside()),
                    why: "two processes in one address space cannot be carried yet".to_owned(),
                    remedy: "wait until the process made by vfork has called exec, then try again".to_owned(),
                });
            }
        }
    }
    Ok(())
}

fn same_memory(one: &Process, two: &Process) -> Result<bool, TraceError> {
    let memory = deltabox_sys::kcmp::Resource::Memory;
    match deltabox_sys::kcmp::tasks(one.pid().pid(), two.pid().pid(), memory) {
        Ok(order) => Ok(order == std::cmp::Ordering::Equal),
        Err(error) if error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => Ok(false),
        Err(source) => Err(TraceError::Request {
            tid: two.pid(),
            what: "compare the address space of",
            source,
        }),
    }
}
