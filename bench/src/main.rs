//! Benchmarks through the daemon, as a caller sees it: `cargo run --release -p deltabox-bench -- files`.
//!
//! Each scenario runs its baseline in the same run. Nothing here fails on a timing.
#![forbid(unsafe_code)]

mod client;
mod daemon;
mod files;
mod fork;
mod history;
mod many;
mod pause;
mod processes;
mod sample;

use clap::{Parser, ValueEnum};

#[derive(Parser)]
struct Arguments {
    /// What to measure.
    #[arg(value_enum, required = true)]
    scenarios: Vec<Scenario>,
    /// Repetitions of each measurement.
    #[arg(long, default_value_t = 300)]
    rounds: usize,
    /// Store to use: auto, btrfs, xfs or directory.
    #[arg(long, default_value = "auto")]
    store: String,
}

#[derive(Clone, Copy, ValueEnum)]
enum Scenario {
    /// Checkpoint and rollback of files, depth, size of the root, copy-up.
    Files,
    /// Creation, first command, many sandboxes at once.
    Many,
    /// Checkpoint and rollback of files and live processes together.
    Processes,
    /// Forks of a sandbox with live processes.
    Fork,
    /// Pause and resume of a sandbox with live processes.
    Pause,
    /// A hundred checkpoints per round in one sandbox: what grows with history.
    History,
}

fn main() -> client::Result<()> {
    let arguments = Arguments::parse();
    for scenario in arguments.scenarios {
        let mut daemon = daemon::Daemon::start(&arguments.store)?;
        match scenario {
            Scenario::Files => files::run(&daemon, arguments.rounds)?,
            Scenario::Many => many::run(&daemon, arguments.rounds)?,
            Scenario::Processes => processes::run(&daemon, arguments.rounds)?,
            Scenario::Fork => fork::run(&daemon, arguments.rounds)?,
            Scenario::Pause => pause::run(&daemon, arguments.rounds)?,
            Scenario::History => history::run(&mut daemon, arguments.rounds)?,
        }
    }
    Ok(())
}
