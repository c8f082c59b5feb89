//! `deltabox pause`

use deltabox_api::CheckpointResult;

use super::failure::Outcome;
use super::output::{emit, emit_json, note};
use super::units::{count, milliseconds};
use crate::client::{Client, sandbox_path};

/// Write the sandbox's state to disk, end its processes and free its memory; print the checkpoint's id
#[derive(clap::Args)]
pub struct Args {
    /// Name of the sandbox
    name: String,
    /// Print the checkpoint as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Outcome {
    let made: CheckpointResult = Client::from_env()?.post(&sandbox_path(&args.name, "/pause"), &())?;
    if args.json {
        emit_json(&made)?;
        return Ok(0);
    }
    emit(&format!("{}\n", made.id))?;
    note(&format!(
        "{} written to disk; checkpoint {}",
        count(made.processes, "process", "processes"),
        milliseconds(made.total_ms),
    ));
    Ok(0)
}
