//! `deltabox rm`

use deltabox_api::ErrorKind;
use hyper::Method;

use super::failure::{Failure, Outcome, usage};
use crate::client::{Client, OutBody, escape, request, sandbox_path};

/// Remove sandboxes with all their checkpoints, or single checkpoints of one
#[derive(clap::Args)]
pub struct Args {
    /// Names of the sandboxes
    #[arg(required = true)]
    names: Vec<String>,
    /// Keep the sandbox and remove these checkpoints of it; their children become their parents'
    #[arg(long, short, num_args = 1.., value_name = "CHECKPOINT")]
    checkpoint: Vec<String>,
    /// End commands that still run, and do not mind if a sandbox or checkpoint does not exist
    #[arg(long, short)]
    force: bool,
}

pub fn run(args: &Args) -> Outcome {
    let paths: Vec<String> = if args.checkpoint.is_empty() {
        let query = if args.force { "?force=true" } else { "" };
        args.names.iter().map(|name| sandbox_path(name, query)).collect()
    } else {
        checkpoints(args)?
    };
    let client = Client::from_env()?;
    let mut code = 0;
    for path in paths {
        match client.perform(request(Method::DELETE, &path, OutBody::empty())?) {
            Err(error) if args.force && error.kind == ErrorKind::NotFound => {}
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

fn checkpoints(args: &Args) -> Result<Vec<String>, Failure> {
    let [name] = args.names.as_slice() else {
        return Err(usage("checkpoints are removed from one sandbox at a time")
            .hint("write: deltabox rm NAME --checkpoint CHECKPOINT...")
            .into());
    };
    // Each removal changes what the next one would count.
    if args.checkpoint.len() > 1 && args.checkpoint.iter().any(|reference| reference.contains('~')) {
        return Err(
            usage("`~` counts ancestors, of which there are fewer after each removal")
                .hint("name several checkpoints by their ids or labels")
                .into(),
        );
    }
    let path = |reference: &String| sandbox_path(name, &format!("/checkpoints/{}", escape(reference)));
    Ok(args.checkpoint.iter().map(path).collect())
}
