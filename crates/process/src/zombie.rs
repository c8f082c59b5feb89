//! Processes that have ended and have not been waited for. They are part of what their parents can see.

use crate::error::TraceError;
use crate::ids::InsidePid;
use crate::image::ZombieImage;
use crate::procfs;
use crate::stop::Tree;
use crate::task;

/// The zombies among the children of the stopped processes. Those of init are about to be reaped and do not count.
pub fn find(tree: &Tree) -> Result<Vec<ZombieImage>, TraceError> {
    let mut found = Vec::new();
    for process in &tree.processes {
        for thread in &process.threads {
            for child in procfs::children(process.pid(), thread.tracee.tid())? {
                if tree.processes.iter().any(|other| other.pid() == child) {
                    continue;
                }
                let Ok(status) = procfs::status(child) else {
                    continue;
                };
                if status.state != 'Z' {
                    continue;
                }
                found.push(ZombieImage {
                    pid: status.inside(),
                    parent: process.inside(),
                    group: InsidePid(status.group),
                    session: InsidePid(status.session),
                    status: task::stat(child)?.exit_code,
                    name: status.name,
                });
            }
        }
    }
    Ok(found)
}
