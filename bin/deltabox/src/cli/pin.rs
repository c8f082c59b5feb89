//! `deltabox pin` and `deltabox unpin`

use hyper::Method;

use super::failure::Outcome;
use crate::client::{Client, OutBody, escape, request, sandbox_path};

#[derive(clap::Args)]
pub struct Args {
    /// Name of the sandbox
    name: String,
    /// Id, unique prefix, label, `@` (current), or `~N` (its N-th ancestor)
    checkpoint: String,
}

pub fn run(args: &Args, method: Method) -> Outcome {
    let path = sandbox_path(
        &args.name,
        &format!("/checkpoints/{}/pin", escape(&args.checkpoint)),
    );
    Client::from_env()?.perform(request(method, &path, OutBody::empty())?)?;
    Ok(0)
}
