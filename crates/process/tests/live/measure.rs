//! Latencies, for looking at (`cargo test --release -- --ignored --nocapture measure`).

use std::time::{Duration, Instant};

use deltabox_process::Report;

use crate::sandbox::Sandbox;

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1e3
}

fn show(title: &str, reports: &[(Duration, Report)]) {
    let total = median(reports.iter().map(|report| report.0).collect());
    let last = &reports.last().unwrap().1;
    print!("{title:34} total {total:7.3} ms:");
    for (phase, _) in &last.phases {
        print!(
            " {phase} {:.3}",
            median(reports.iter().map(|report| report.1.phase(phase)).collect())
        );
    }
    println!(
        "; stored {} kB, written {} kB",
        last.bytes_stored >> 10,
        last.bytes_written >> 10
    );
}

fn measure(title: &str, setup: &str, change: &str, rounds: usize) {
    let mut sandbox = Sandbox::new();
    let mut python = sandbox.python();
    python.ask(setup);
    let (first, report) = sandbox.timed_checkpoint();
    show(&format!("{title}: first checkpoint"), &[(Duration::ZERO, report)]);
    let mut checkpoints = Vec::new();
    for _ in 0..rounds {
        python.ask(change);
        let start = Instant::now();
        let (_, report) = sandbox.timed_checkpoint();
        checkpoints.push((start.elapsed(), report));
    }
    show(&format!("{title}: checkpoint"), &checkpoints);
    let image = sandbox.checkpoint();
    let mut rollbacks = Vec::new();
    for _ in 0..rounds {
        python.ask(change);
        let start = Instant::now();
        let report = sandbox.rollback(&image);
        rollbacks.push((start.elapsed(), report));
    }
    show(&format!("{title}: rollback"), &rollbacks);
    let start = Instant::now();
    let report = sandbox.rollback(&first);
    show(&format!("{title}: to the first"), &[(start.elapsed(), report)]);
}

#[test]
#[ignore = "for looking at, not for passing"]
fn latencies() {
    measure(
        "CPython",
        "x = bytearray(20 << 20); _ = 0",
        "x[:1 << 20] = bytes(1 << 20); _ = 0",
        51,
    );
    let scattered = "import random\nfor i in range(256): x[random.randrange(1 << 30)] = 1";
    let change = format!("exec({scattered:?}); _ = 0");
    measure("1 GB", "x = bytearray(b'1') * (1 << 30); _ = 0", &change, 21);
}
