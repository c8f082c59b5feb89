//! `deltabox log`

use deltabox_api::Log;

use super::failure::Outcome;
use super::output::{emit, emit_json};
use super::tree;
use crate::client::{Client, sandbox_path};

/// Show the tree of checkpoints and the current position in it
#[derive(clap::Args)]
pub struct Args {
    /// Name of the sandbox
    name: String,
    /// Print the list of checkpoints as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Outcome {
    let log: Log = Client::from_env()?.get(&sandbox_path(&args.name, "/checkpoints?disk=true"))?;
    if args.json {
        emit_json(&log)?;
    } else if log.checkpoints.is_empty() {
        emit(&format!("{} has no checkpoints yet\n", args.name))?;
    } else {
        emit(&tree::draw(&log))?;
    }
    Ok(0)
}
