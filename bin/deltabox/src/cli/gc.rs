//! `deltabox gc`

use deltabox_api::{GcRequest, GcResult};

use super::failure::Outcome;
use super::output::{emit, emit_json};
use super::units::{count, size};
use crate::client::Client;

/// Remove the checkpoints that the sandboxes' limits do not keep, now, and give free space back
#[derive(clap::Args)]
pub struct Args {
    /// Name of the sandbox; all of them when absent
    name: Option<String>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> Outcome {
    let request = GcRequest { sandbox: args.name };
    let result: GcResult = Client::from_env()?.post("/gc", &request)?;
    if args.json {
        emit_json(&result)?;
        return Ok(0);
    }
    for removed in &result.removed {
        emit(&format!("{} {}\n", removed.sandbox, removed.checkpoint))?;
    }
    emit(&format!(
        "{} removed, {} freed\n",
        count(result.removed.len(), "checkpoint", "checkpoints"),
        size(result.freed_bytes)
    ))?;
    Ok(0)
}
