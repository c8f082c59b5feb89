//! A sandbox with live processes goes to disk and comes back.

use deltabox_api::{CheckpointResult, ResumeRequest, RollbackResult, Root};

use crate::client::Result;
use crate::daemon::Daemon;
use crate::processes::{Pace, start_workload};
use crate::sample::{Report, Samples};

/// Resident megabytes, and kilobytes written every 10 ms.
const WORKLOAD: (usize, usize) = (60, 100);

pub fn run(daemon: &Daemon, rounds: usize) -> Result<()> {
    let mut client = daemon.client()?;
    client.create("sleeper", Root::Host)?;
    start_workload(&mut client, "sleeper", WORKLOAD, Pace::Busy)?;
    let (mut pauses, mut resumes, mut answers) = Default::default();
    let mut phases = Vec::new();
    for _ in 0..rounds.min(30) {
        Samples::time(&mut pauses, || {
            client.post::<CheckpointResult>("/sandboxes/sleeper/pause", &())
        })?;
        Samples::time(&mut answers, || {
            let resumed: RollbackResult = Samples::time(&mut resumes, || {
                client.post("/sandboxes/sleeper/resume", &ResumeRequest::default())
            })?;
            phases.push(resumed.phases_ms);
            client.must("sleeper", "echo alive")
        })?;
        std::thread::sleep(std::time::Duration::from_millis(30));
    }
    client.remove("sleeper")?;
    let mut report = Report::default();
    report.add("pause: durable, processes ended", pauses);
    report.add("resume: processes run again", resumes);
    report.add("resume to the first command's output", answers);
    report.add_phases("resume", &phases);
    report.print(&format!(
        "To disk and back: a shell, sleep and Python with 2 threads, {} MB resident; warm page cache",
        WORKLOAD.0
    ));
    Ok(())
}
