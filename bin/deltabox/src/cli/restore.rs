//! `deltabox restore`

use deltabox_api::RestoreRequest;
use hyper::Method;

use super::failure::Outcome;
use crate::client::{Client, json_request, sandbox_path};

/// Bring a single file or directory back from a checkpoint, leaving everything else as it is
#[derive(clap::Args)]
pub struct Args {
    /// Name of the sandbox
    name: String,
    /// Absolute path inside
    #[arg(long)]
    path: String,
    /// The checkpoint to take it from
    #[arg(long, value_name = "CHECKPOINT")]
    from: String,
}

pub fn run(args: Args) -> Outcome {
    let request = RestoreRequest {
        path: args.path,
        from: args.from,
    };
    let path = sandbox_path(&args.name, "/restore");
    Client::from_env()?.perform(json_request(Method::POST, &path, &request)?)?;
    Ok(0)
}
