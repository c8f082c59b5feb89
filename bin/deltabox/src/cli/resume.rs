//! `deltabox resume`

use deltabox_api::{ResumeRequest, RollbackResult};

use super::failure::Outcome;
use super::output::{emit, emit_json, note};
use super::units::{count, milliseconds};
use crate::client::{Client, sandbox_path};

/// Bring a sandbox back that was paused, or was running when the daemon or the machine went down
#[derive(clap::Args)]
pub struct Args {
    /// Name of the sandbox
    name: String,
    /// The checkpoint to go on from; the current one when absent
    checkpoint: Option<String>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> Outcome {
    let request = ResumeRequest { to: args.checkpoint };
    let result: RollbackResult = Client::from_env()?.post(&sandbox_path(&args.name, "/resume"), &request)?;
    if args.json {
        emit_json(&result)?;
        return Ok(0);
    }
    emit(&format!("{}\n", result.id))?;
    note(&format!(
        "{} made anew, total {}",
        count(result.recreated, "process", "processes"),
        milliseconds(result.total_ms),
    ));
    Ok(0)
}
