//! Images for unit tests.

use crate::credentials::Credentials;
use crate::ids::InsidePid;
use crate::image::{Identity, Place, ProcessImage};
use crate::memory::maps::{Kind, Vma};
use crate::memory::page_tree::PageTree;
use crate::task::{MemoryLayout, TaskImage};

/// A process with nothing in it.
pub(crate) fn process(pid: i32, parent: i32, session: i32) -> ProcessImage {
    let place = Place {
        path: b"/bin/true".to_vec(),
        device: 0,
        inode: 0,
    };
    let task = TaskImage {
        actions: Vec::new(),
        pending: Vec::new(),
        interval_timers: Vec::new(),
        timers: Vec::new(),
        limits: Vec::new(),
        umask: 0o22,
        personality: 0,
        settings: Vec::new(),
        oom_score_adj: 0,
        coredump_filter: 0,
        credentials: Credentials::default(),
        layout: MemoryLayout::default(),
        future_locks: 0,
    };
    ProcessImage {
        identity: Identity(u64::from(pid.cast_unsigned())),
        pid: InsidePid(pid),
        parent: InsidePid(parent),
        group: InsidePid(pid),
        session: InsidePid(session),
        name: "true".to_owned(),
        group_stop: None,
        terminal: None,
        executable: place,
        auxv: Vec::new(),
        exit_signal: libc::SIGCHLD,
        task,
        threads: Vec::new(),
        vmas: Vec::new(),
        pages: PageTree::new(),
    }
}

/// A readable and writable mapping without a name.
pub(crate) fn vma(start: u64, end: u64, kind: Kind) -> Vma {
    Vma {
        start,
        end,
        protection: 3,
        kind,
        label: String::new(),
        flags: 0,
    }
}
