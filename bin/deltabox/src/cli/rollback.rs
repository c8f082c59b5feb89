//! `deltabox rollback`

use deltabox_api::{RollbackRequest, RollbackResult};

use super::failure::Outcome;
use super::output::{emit, emit_json, note, printable};
use super::units::{count, milliseconds};
use crate::client::{Client, sandbox_path};

/// Put the sandbox back into the state of a checkpoint; all checkpoints stay valid
#[derive(clap::Args)]
pub struct Args {
    /// Name of the sandbox
    name: String,
    /// Id, unique prefix, label, `@` (current), or `~N` (its N-th ancestor)
    checkpoint: String,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> Outcome {
    let request = RollbackRequest { to: args.checkpoint };
    let result: RollbackResult =
        Client::from_env()?.post(&sandbox_path(&args.name, "/rollback"), &request)?;
    if args.json {
        emit_json(&result)?;
        return Ok(0);
    }
    let label = result
        .label
        .as_ref()
        .map(|label| format!(" ({})", printable(label)))
        .unwrap_or_default();
    emit(&format!("{}{label}\n", result.id))?;
    note(&format!(
        "stopped {}, total {}; {} kept, {} made anew, {} ended",
        milliseconds(result.stopped_ms),
        milliseconds(result.total_ms),
        count(result.kept, "process", "processes"),
        result.recreated,
        result.ended,
    ));
    Ok(0)
}
