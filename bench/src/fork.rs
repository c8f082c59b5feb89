//! Forks of a sandbox with live processes: until every child has answered a command.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use deltabox_api::{ForkRequest, ForkResult, Forked, Root};

use crate::client::{Client, Result};
use crate::daemon::Daemon;
use crate::processes::{Pace, start_workload};
use crate::sample::{Report, Samples};

/// Children of one fork.
const COUNTS: [usize; 4] = [1, 4, 16, 64];

/// Resident megabytes of the source, and kilobytes it writes every 10 ms.
const WORKLOAD: (usize, usize) = (60, 100);

pub fn run(daemon: &Daemon, rounds: usize) -> Result<()> {
    let mut client = daemon.client()?;
    client.create("source", Root::Host)?;
    start_workload(&mut client, "source", WORKLOAD, Pace::Busy)?;
    let mut report = Report::default();
    for count in COUNTS {
        let (mut forks, mut answers, mut children, mut stopped) = Default::default();
        let mut phases = Vec::new();
        for _ in 0..(rounds / count).clamp(3, 30) {
            let start = Instant::now();
            let result: ForkResult = Samples::time(&mut forks, || {
                let request = ForkRequest {
                    count,
                    name: Some("child".into()),
                    ..ForkRequest::default()
                };
                client.post("/sandboxes/source/fork", &request)
            })?;
            let names = names(&result, &mut children, &mut phases)?;
            answer(daemon, &names)?;
            Samples::push(&mut answers, start.elapsed().as_secs_f64() * 1e3);
            Samples::push(&mut stopped, result.stopped_ms);
            names.iter().try_for_each(|name| client.remove(name))?;
            std::thread::sleep(Duration::from_millis(20));
        }
        report.add(format!("{count} children: all have answered"), answers);
        report.add("  the call", forks);
        report.add("  one child, from its turn", children);
        report.add("  the source stood still", stopped);
        report.add_phases("one child", &phases);
    }
    client.remove("source")?;
    report.print(&format!(
        "Forks of a shell, sleep and Python with 2 threads, {} MB resident",
        WORKLOAD.0
    ));
    Ok(())
}

fn names(
    result: &ForkResult,
    times: &mut Samples,
    phases: &mut Vec<BTreeMap<String, f64>>,
) -> Result<Vec<String>> {
    let name = |child: &Forked| match child {
        Forked::Made(child) => {
            times.push(child.total_ms);
            phases.push(child.sandbox.phases_ms.clone());
            Ok(child.sandbox.name.clone())
        }
        Forked::Failed { name, error } => Err(format!("{name}: {error}").into()),
    };
    result.children.iter().map(name).collect()
}

/// A command in each child, four at a time.
fn answer(daemon: &Daemon, names: &[String]) -> Result<()> {
    let one = |names: &[String]| -> std::result::Result<(), String> {
        let mut client: Client = daemon.client().map_err(|error| error.to_string())?;
        for name in names {
            let answer = client
                .must(name, "echo alive")
                .map_err(|error| error.to_string())?;
            if answer != "alive\n" {
                return Err(format!("{name} answers {answer:?}"));
            }
        }
        Ok(())
    };
    let results: Vec<_> = std::thread::scope(|scope| {
        let parts = names.chunks(names.len().div_ceil(4));
        let threads: Vec<_> = parts.map(|part| scope.spawn(move || one(part))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("no panic"))
            .collect()
    });
    results.into_iter().collect::<std::result::Result<(), String>>()?;
    Ok(())
}
