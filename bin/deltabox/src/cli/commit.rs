//! `deltabox commit`

use std::io::IsTerminal;

use deltabox_api::{CommitRequest, CommitResult};

use super::diff::describe;
use super::failure::{Outcome, usage};
use super::output::{emit, emit_json};
use super::units::count;
use crate::client::{Client, sandbox_path};

/// Apply a checkpoint's changes to a directory of the host; without --yes only show them
#[derive(clap::Args)]
pub struct Args {
    /// Name of the sandbox
    name: String,
    /// The checkpoint whose changes (since the sandbox's root) are taken
    checkpoint: String,
    /// Directory inside whose changes are taken
    #[arg(long, value_name = "PATH")]
    from_path: String,
    /// Directory of the host they are applied to
    #[arg(long = "to", value_name = "DIR")]
    target: String,
    /// Apply the changes
    #[arg(long, short)]
    yes: bool,
    /// Print the changes as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> Outcome {
    let target = std::path::absolute(&args.target)
        .ok()
        .and_then(|path| path.into_os_string().into_string().ok())
        .ok_or_else(|| usage(format!("cannot use '{}' as a directory of the host", args.target)))?;
    let request = CommitRequest {
        checkpoint: args.checkpoint,
        from_path: args.from_path,
        target,
        preview: !args.yes,
    };
    let result: CommitResult = Client::from_env()?.post(&sandbox_path(&args.name, "/commit"), &request)?;
    if args.json {
        emit_json(&result)?;
        return Ok(0);
    }
    emit(&describe(&result.changes, std::io::stdout().is_terminal()))?;
    let changes = count(result.changes.len(), "change", "changes");
    if result.applied {
        eprintln_quietly(&format!("{changes} applied to {}", request.target));
    } else {
        eprintln_quietly(&format!(
            "{changes}, nothing applied yet: repeat with --yes to apply to {}",
            request.target
        ));
    }
    Ok(0)
}

/// Standard error may be closed; what was asked for is done all the same.
fn eprintln_quietly(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{text}");
}
