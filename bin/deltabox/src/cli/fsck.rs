//! `deltabox fsck`

use deltabox_api::FsckResult;

use super::failure::Outcome;
use super::output::{emit, emit_json, printable};
use super::units::count;
use crate::client::Client;

/// Read all durable checkpoints and name those that are damaged; exit code 1 if there are any
#[derive(clap::Args)]
pub struct Args {
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Outcome {
    let result: FsckResult = Client::from_env()?.post("/fsck", &())?;
    if args.json {
        emit_json(&result)?;
    } else {
        for damage in &result.damaged {
            emit(&printable(&format!(
                "{} {}: {}",
                damage.sandbox, damage.checkpoint, damage.problem
            )))?;
            emit("\n")?;
        }
        emit(&format!(
            "{} checked, {} damaged\n",
            count(result.checkpoints, "checkpoint", "checkpoints"),
            result.damaged.len()
        ))?;
    }
    Ok(i32::from(!result.damaged.is_empty()))
}
