//! `deltabox rm`

use hyper::Method;

use super::failure::{Failure, Outcome};
use crate::client::{Client, OutBody, request, sandbox_path};

/// Remove sandboxes with all their checkpoints
#[derive(clap::Args)]
pub struct Args {
    /// Names of the sandboxes
    #[arg(required = true)]
    names: Vec<String>,
    /// End commands that still run, and do not mind if a sandbox does not exist
    #[arg(long, short)]
    force: bool,
}

pub fn run(args: &Args) -> Outcome {
    let client = Client::from_env()?;
    let mut code = 0;
    for name in &args.names {
        let query = if args.force { "?force=true" } else { "" };
        let removed = client.perform(request(
            Method::DELETE,
            &sandbox_path(name, query),
            OutBody::empty(),
        )?);
        match removed {
            Err(error) if args.force && error.kind == deltabox_api::ErrorKind::NotFound => {}
            // The others are removed all the same.
            Err(error) => code = Failure::from(error).report(),
            Ok(()) => {}
        }
    }
    if code == 0 {
        Ok(0)
    } else {
        Err(Failure::Reported(code))
    }
}
