//! `deltabox fork`

use deltabox_api::{ForkRequest, ForkResult, Forked};

use super::failure::{Failure, Outcome};
use super::output::{emit, emit_json, note};
use super::units::milliseconds;
use crate::client::{Client, sandbox_path};

/// Make sandboxes that go on from the state of this one, and print their names
#[derive(clap::Args)]
pub struct Args {
    /// Name of the sandbox
    name: String,
    /// The checkpoint to start from; without it the live state, of which a checkpoint is made
    #[arg(long, value_name = "CHECKPOINT")]
    from: Option<String>,
    /// How many
    #[arg(short = 'n', long = "count", default_value_t = 1, value_name = "K")]
    count: usize,
    /// Name of the child; of several, NAME-1 to NAME-K
    #[arg(long = "name", value_name = "NAME")]
    child: Option<String>,
    /// Print a list with an entry per child as JSON: the sandbox, or the error
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> Outcome {
    let request = ForkRequest {
        from: args.from,
        count: args.count,
        name: args.child,
    };
    let result: ForkResult = Client::from_env()?.post(&sandbox_path(&args.name, "/fork"), &request)?;
    if args.json {
        emit_json(&result.children)?;
    }
    let mut failed = None;
    for child in result.children {
        match child {
            Forked::Made(child) if !args.json => emit(&format!("{}\n", child.sandbox.name))?,
            Forked::Made(_) => {}
            Forked::Failed { name, mut error } => {
                error.message = format!("{name} could not be made: {}", error.message);
                failed = Some(Failure::from(error).report());
            }
        }
    }
    note(&format!(
        "from {}; stopped {}, total {}",
        result.checkpoint,
        milliseconds(result.stopped_ms),
        milliseconds(result.total_ms),
    ));
    failed.map_or(Ok(0), |code| Err(Failure::Reported(code)))
}
