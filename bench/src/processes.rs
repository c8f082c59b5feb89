//! Files and live processes together: a shell and a Python program with threads that keeps changing memory and files.

use std::time::Duration;

use deltabox_api::{ExecRequest, Root};

use crate::client::{Client, Result};
use crate::daemon::Daemon;
use crate::sample::{Report, Samples};

/// When the program works.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// A step when it is told to, as between two turns of an agent; checkpoints and rollbacks find it waiting.
    Turns,
    /// A step every 10 ms, whatever else happens.
    Busy,
}

/// Resident sizes in MB, how much of it the program writes in a step in KB, and when.
const WORKLOADS: [(usize, usize, Pace); 4] = [
    (60, 1500, Pace::Turns),
    (60, 1500, Pace::Busy),
    (60, 100, Pace::Busy),
    (1000, 1000, Pace::Turns),
];

/// A step touches one byte per page of as much memory as asked for, and five files.
const PROGRAM: &str = "
import os, sys, threading, time
resident, dirty, turns = int(sys.argv[1]) << 20, int(sys.argv[2]) << 10, sys.argv[3] == 'turns'
memory = bytearray(os.urandom(1 << 20) * (resident >> 20))
os.makedirs('/w', exist_ok=True)
os.mkfifo('/w/step'); os.mkfifo('/w/done')
threading.Thread(target=lambda: time.sleep(10 ** 6), daemon=True).start()
n = 0
while True:
    if turns and n: open('/w/step').read()
    n += 1
    start = (n * dirty) % (resident - dirty)
    for at in range(start, start + dirty, 4096): memory[at] = n & 255
    for k in range(5):
        with open(f'/w/f{k}', 'w') as f: f.write(str(n))
    open('/w/ready', 'w').close()
    if not turns: time.sleep(0.01)
    elif n > 1: open('/w/done', 'w').close()
";

pub fn run(daemon: &Daemon, rounds: usize) -> Result<()> {
    let mut client = daemon.client()?;
    for (resident_mb, dirty_kb, pace) in WORKLOADS {
        workload(&mut client, resident_mb, dirty_kb, pace, rounds)?;
    }
    Ok(())
}

/// Starts the programs in a sandbox and waits until they work.
pub fn start_workload(
    client: &mut Client,
    name: &str,
    (resident_mb, dirty_kb): (usize, usize),
    pace: Pace,
) -> Result<()> {
    let pace = match pace {
        Pace::Turns => "turns",
        Pace::Busy => "busy",
    };
    let script = format!("sleep 1000000 & python3 -S -c \"$PROGRAM\" {resident_mb} {dirty_kb} {pace}");
    let request = ExecRequest {
        argv: vec!["/bin/bash".into(), "-c".into(), script],
        env: [("PROGRAM".to_owned(), PROGRAM.to_owned())].into(),
        detach: true,
        ..ExecRequest::default()
    };
    client.exec(name, request)?;
    client.must(name, "while ! [ -e /w/ready ]; do sleep 0.05; done")?;
    Ok(())
}

/// Has the program do something since the last checkpoint or rollback.
fn go_on(client: &mut Client, name: &str, pace: Pace) -> Result<()> {
    match pace {
        Pace::Turns => client.must(name, "echo > /w/step; cat /w/done").map(drop),
        Pace::Busy => {
            std::thread::sleep(Duration::from_millis(12));
            Ok(())
        }
    }
}

fn workload(
    client: &mut Client,
    resident_mb: usize,
    dirty_kb: usize,
    pace: Pace,
    rounds: usize,
) -> Result<()> {
    let often = match pace {
        Pace::Turns => "turn",
        Pace::Busy => "10 ms",
    };
    let name = format!("p{resident_mb}-{dirty_kb}-{}", pace == Pace::Busy);
    client.create(&name, Root::Host)?;
    start_workload(client, &name, (resident_mb, dirty_kb), pace)?;
    let mut first = Samples::default();
    first.time(|| client.checkpoint(&name))?;
    let (mut checkpoints, mut stopped, mut rollbacks) =
        (Samples::default(), Samples::default(), Samples::default());
    let (mut checkpoint_phases, mut rollback_phases, mut bytes) = (Vec::new(), Vec::new(), 0);
    let mut ids: Vec<String> = Vec::new();
    for i in 0..rounds {
        go_on(client, &name, pace)?;
        let made = checkpoints.time(|| client.checkpoint(&name))?;
        stopped.push(made.stopped_ms);
        bytes += made.memory_bytes;
        checkpoint_phases.push(made.phases_ms);
        ids.push(made.id);
        go_on(client, &name, pace)?;
        // Mostly back to where the step began, as a search does, sometimes further.
        let to = if i % 4 == 3 {
            (i * 7919) % ids.len()
        } else {
            ids.len() - 1
        };
        let back = rollbacks.time(|| client.rollback(&name, &ids[to]))?;
        rollback_phases.push(back.phases_ms);
    }
    client.remove(&name)?;
    let mut report = Report::default();
    report.add("first checkpoint", first);
    report.add("checkpoint", checkpoints);
    report.add("  the sandbox stood still", stopped);
    report.add_phases("checkpoint", &checkpoint_phases);
    report.add("rollback", rollbacks);
    report.add_phases("rollback", &rollback_phases);
    report.note(format!(
        "{} KiB of memory stored per checkpoint on average.",
        bytes / 1024 / rounds.max(1) as u64
    ));
    report.print(&format!("Processes: a shell, sleep and Python with 2 threads, {resident_mb} MB resident, {dirty_kb} KB written per {often}"));
    Ok(())
}
