//! What a checkpoint holds of the processes: everything small as plain data, page contents by reference.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::descriptor::Tables;
use crate::ids::InsidePid;
use crate::ipc;
use crate::job_control::GroupStop;
use crate::memory::maps::Vma;
use crate::memory::page_tree::PageTree;
use crate::shared::SharedImage;
use crate::task::TaskImage;
use crate::thread::ThreadImage;

/// Tells apart programs that had the same pid one after the other: a number given when the engine first sees a process,
/// and again when it has called `execve`. A re-created process is the one it replaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Identity(pub u64);

/// A file, as a process holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The path, as `/proc` tells it.
    pub path: Vec<u8>,
    /// Device number.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
}

/// One process as it was.
#[derive(Clone, Serialize, Deserialize)]
pub struct ProcessImage {
    /// Which program this is.
    pub identity: Identity,
    /// Its id.
    pub pid: InsidePid,
    /// Its parent.
    pub parent: InsidePid,
    /// Process group.
    pub group: InsidePid,
    /// Session.
    pub session: InsidePid,
    /// The number of its controlling terminal (`/dev/pts/N`).
    pub terminal: Option<u32>,
    /// Command name.
    pub name: String,
    /// The job control stop it was in.
    pub group_stop: Option<GroupStop>,
    /// Executable.
    pub executable: Place,
    /// The auxiliary vector the kernel shows in `/proc/PID/auxv`.
    pub auxv: Vec<u8>,
    /// The signal its parent gets when it ends.
    pub exit_signal: i32,
    /// The rest of what belongs to the whole process.
    pub task: TaskImage,
    /// Threads; the first is the leader.
    pub threads: Vec<ThreadImage>,
    /// Mappings.
    pub vmas: Vec<Vma>,
    /// Private pages.
    #[serde(skip)]
    pub pages: PageTree,
}

/// A process that has ended and has not been waited for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZombieImage {
    /// Its id.
    pub pid: InsidePid,
    /// Its parent.
    pub parent: InsidePid,
    /// Process group.
    pub group: InsidePid,
    /// Session.
    pub session: InsidePid,
    /// What `waitpid` will report.
    pub status: i32,
    /// Command name.
    pub name: String,
}

/// All processes of a sandbox at one instant.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Image {
    /// The processes, parents before children.
    pub processes: Vec<Arc<ProcessImage>>,
    /// Ended processes.
    pub zombies: Vec<ZombieImage>,
    /// Memory that processes share.
    pub shared: Vec<SharedImage>,
    /// IPC objects.
    pub ipc: ipc::State,
    /// Open files and everything else behind descriptors.
    pub descriptors: Tables,
}

impl Image {
    /// The same for a machine whose monotonic and boot clock are so many nanoseconds ahead, seen from the sandbox. What
    /// is set to a time on them is in the machine's time, as files of the sandbox are made from outside.
    #[must_use]
    pub fn with_clocks_moved(&self, monotonic: i64, boottime: i64) -> Image {
        let mut image = self.clone();
        image.descriptors.move_clocks(monotonic, boottime);
        image
    }
}

/// What an operation took.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Time of each phase, in order.
    pub phases: Vec<(&'static str, Duration)>,
    /// Bytes of memory looked at.
    pub bytes_read: u64,
    /// Bytes of memory newly stored.
    pub bytes_stored: u64,
    /// Bytes of memory written back.
    pub bytes_written: u64,
    /// Threads that had done something, and were asked for their state or given another.
    pub disturbed: usize,
    /// Processes changed in place.
    pub in_place: usize,
    /// Processes re-created.
    pub created: usize,
    /// Processes ended.
    pub killed: usize,
}

impl Report {
    /// Adds time to a phase.
    pub(crate) fn add(&mut self, phase: &'static str, time: Duration) {
        match self.phases.iter_mut().find(|(name, _)| *name == phase) {
            Some((_, total)) => *total += time,
            None => self.phases.push((phase, time)),
        }
    }

    /// Time of one phase.
    #[must_use]
    pub fn phase(&self, name: &str) -> Duration {
        self.phases
            .iter()
            .find(|(phase, _)| *phase == name)
            .map_or(Duration::ZERO, |(_, time)| *time)
    }
}
