//! One sandbox with ever more checkpoints: what they cost, what the log and a restart cost, what the daemon's memory is.

use std::time::Duration;

use deltabox_api::{Log, ResumeRequest, RollbackResult, Root, Stats};

use crate::client::{Client, Result};
use crate::daemon::Daemon;
use crate::many::memory_of;
use crate::processes::{Pace, start_workload};
use crate::sample::{Report, Samples};

/// Checkpoints between two looks.
const STEP: usize = 100;
/// Megabytes resident, and kilobytes written every 10 ms.
const WORKLOAD: (usize, usize) = (10, 40);

/// `rounds` times a hundred checkpoints, so 100 make 10,000.
pub fn run(daemon: &mut Daemon, rounds: usize) -> Result<()> {
    let looks = looks(rounds);
    for processes in [false, true] {
        let name = if processes { "processes" } else { "files" };
        let mut client = daemon.client()?;
        client.create(name, Root::Host)?;
        if processes {
            start_workload(&mut client, name, WORKLOAD, Pace::Busy)?;
        }
        let (mut report, mut before) = (Report::default(), None);
        for round in 1..=rounds {
            let taken = hundred(&mut client, name, processes)?;
            if !looks.contains(&round) {
                continue;
            }
            let count = round * STEP;
            report.add(format!("checkpoint {count}"), taken.checkpoints);
            report.add(format!("  rollback, of {count}"), taken.rollbacks);
            look(daemon, &mut client, name, count, before, &mut report)?;
            let mut restart = Samples::default();
            restart.push(daemon.restart()?);
            report.add(format!("  restart with {count}"), restart);
            client = daemon.client()?;
            let mut resume = Samples::default();
            resume.time(|| {
                let path = format!("/sandboxes/{name}/resume");
                client.post::<RollbackResult>(&path, &ResumeRequest::default())
            })?;
            report.add(format!("  resume with {count}"), resume);
            // From here on memory grows by what is made, not by what was read.
            before = Some((count, memory_beyond_pages(daemon, &mut client, name)?));
        }
        client.remove(name)?;
        report.print(&format!(
            "History: {} checkpoints of a sandbox, {name}",
            rounds * STEP
        ));
    }
    Ok(())
}

/// The first, the last, and some between.
fn looks(rounds: usize) -> Vec<usize> {
    let mut looks = vec![1, rounds.div_ceil(10), rounds.div_ceil(3), rounds];
    looks.dedup();
    looks
}

#[derive(Default)]
struct Taken {
    checkpoints: Samples,
    rollbacks: Samples,
}

fn hundred(client: &mut Client, name: &str, processes: bool) -> Result<Taken> {
    let mut taken = Taken::default();
    for i in 0..STEP {
        if processes {
            std::thread::sleep(Duration::from_millis(12));
        } else {
            client.must(name, &format!("echo {i} > /tmp/f{}", i % 20))?;
        }
        let made = taken.checkpoints.time(|| client.checkpoint(name))?;
        if i % 5 == 4 {
            taken.rollbacks.time(|| client.rollback(name, &made.id))?;
        }
    }
    Ok(taken)
}

/// The log, and what the daemon's memory has grown by since `before`.
fn look(
    daemon: &Daemon,
    client: &mut Client,
    name: &str,
    count: usize,
    before: Option<(usize, u64)>,
    report: &mut Report,
) -> Result<()> {
    let mut log = Samples::default();
    for _ in 0..5 {
        log.time(|| client.get::<Log>(&format!("/sandboxes/{name}/checkpoints")))?;
    }
    report.add(format!("  log of {count}"), log);
    if let Some((earlier, then)) = before {
        let now = memory_beyond_pages(daemon, client, name)?;
        let each = (now as f64 - then as f64) / (count - earlier) as f64;
        report.note(format!(
            "{count} checkpoints: {each:.0} bytes of the daemon's memory beyond pages for each since {earlier}."
        ));
    }
    Ok(())
}

/// Private memory of the daemon without the contents of pages, when nothing is pending.
fn memory_beyond_pages(daemon: &Daemon, client: &mut Client, name: &str) -> Result<u64> {
    std::thread::sleep(Duration::from_millis(1500));
    let stats: Stats = client.get(&format!("/sandboxes/{name}/stats"))?;
    let (private, _) = memory_of(daemon.pid() as i32)?;
    Ok((private * 1024).saturating_sub(stats.page_store_bytes))
}
