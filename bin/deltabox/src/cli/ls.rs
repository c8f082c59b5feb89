//! `deltabox ls`

use deltabox_api::{Root, SandboxInfo, SandboxStatus};

use super::failure::Outcome;
use super::output::{emit, emit_json, printable, render, table};
use super::units::age;
use crate::client::Client;

/// List the sandboxes
#[derive(clap::Args)]
pub struct Args {
    /// Print the list as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Outcome {
    let sandboxes: Vec<SandboxInfo> = Client::from_env()?.get("/sandboxes")?;
    if args.json {
        emit_json(&sandboxes)?;
        return Ok(0);
    }
    let mut table = table(&[
        "NAME",
        "STATUS",
        "ROOT",
        "CURRENT",
        "CHECKPOINTS",
        "COMMANDS",
        "AGE",
    ]);
    for sandbox in &sandboxes {
        table.add_row([
            sandbox.name.clone(),
            status(sandbox.status).to_owned(),
            printable(&root(&sandbox.root)),
            sandbox.current.clone().unwrap_or_else(|| "-".to_owned()),
            sandbox.checkpoints.to_string(),
            sandbox.execs.len().to_string(),
            age(sandbox.created_unix.saturating_mul(1000)),
        ]);
    }
    emit(&render(&table))?;
    Ok(0)
}

pub fn status(status: SandboxStatus) -> &'static str {
    match status {
        SandboxStatus::Running => "running",
        SandboxStatus::Stopped => "stopped",
        SandboxStatus::Failed => "failed",
    }
}

pub fn root(root: &Root) -> String {
    match root {
        Root::Host => "host".to_owned(),
        Root::Directory { path } => path.clone(),
        Root::Image { reference } => reference.clone(),
    }
}
