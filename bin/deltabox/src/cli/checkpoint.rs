//! `deltabox checkpoint`

use clap::ValueEnum;
use deltabox_api::{CheckpointRequest, CheckpointResult, Wait};

use super::failure::Outcome;
use super::output::{emit, emit_json, note};
use super::units::{count, milliseconds, size, size_or_dash};
use crate::client::{Client, sandbox_path};

/// Keep the sandbox's present state and print the new checkpoint's id
#[derive(clap::Args)]
pub struct Args {
    /// Name of the sandbox
    name: String,
    /// Name of the checkpoint; later usable in place of its id
    #[arg(long, short)]
    label: Option<String>,
    /// Any text, given back by a rollback to this checkpoint
    #[arg(long)]
    token: Option<String>,
    /// Keep it from being removed until it is unpinned
    #[arg(long)]
    pin: bool,
    /// What to wait for
    #[arg(long, value_enum, default_value = "ready", hide_possible_values = false)]
    wait: WaitFor,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum WaitFor {
    /// The checkpoint can be rolled back to
    Ready,
    /// It survives a crash of the daemon and a loss of power
    Durable,
}

pub fn run(args: Args) -> Outcome {
    let request = CheckpointRequest {
        label: args.label,
        token: args.token,
        pin: args.pin,
        wait: match args.wait {
            WaitFor::Ready => Wait::Ready,
            WaitFor::Durable => Wait::Durable,
        },
    };
    let result: CheckpointResult =
        Client::from_env()?.post(&sandbox_path(&args.name, "/checkpoints"), &request)?;
    if args.json {
        emit_json(&result)?;
        return Ok(0);
    }
    emit(&format!("{}\n", result.id))?;
    note(&format!(
        "stopped {}, total {}; files {} ({}), memory {}, {}{}",
        milliseconds(result.stopped_ms),
        milliseconds(result.total_ms),
        size_or_dash(result.file_bytes),
        result.freeze,
        size(result.memory_bytes),
        count(result.processes, "process", "processes"),
        if result.durable { ", durable" } else { "" },
    ));
    Ok(0)
}
