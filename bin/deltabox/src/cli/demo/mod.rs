//! `deltabox demo`: the main job on real input, without a network.
//!
//! A program with a failing test is repaired by a search tree: each candidate repair is tried from its parent's
//! checkpoint, files and the living test runner together; what is not better is rolled back.

mod material;
mod report;
mod search;

use std::path::PathBuf;

use deltabox_api::{ApiError, CreateRequest, ErrorKind, Log, SandboxInfo};
use hyper::Method;

use super::failure::Outcome;
use super::output::emit;
use crate::client::{Client, Home, OutBody, request, sandbox_path};
use material::Material;

/// Name of the demo's sandbox, in a state directory of its own.
const SANDBOX: &str = "demo";

/// Repair a failing program by tree search over checkpoints, and show what it cost
#[derive(clap::Args)]
pub struct Args {
    /// Print the measurements as JSON
    #[arg(long)]
    json: bool,
}

/// A daemon of the demo's own, ended with everything it holds when dropped.
struct Stage {
    client: Client,
    directory: PathBuf,
}

impl Stage {
    fn new() -> Result<Self, ApiError> {
        let directory = std::env::temp_dir().join(format!("deltabox-demo-{}", std::process::id()));
        let client = Client::new(Home::at(&directory)?)?;
        Ok(Self { client, directory })
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // Best effort: what is left behind is one directory, and a daemon that `deltabox stop` ends.
        if let Err(failure) = super::stop::stop(&self.client) {
            failure.report();
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

pub fn run(args: &Args) -> Outcome {
    let material = Material::load()?;
    let stage = Stage::new()?;
    let client = &stage.client;
    let say = |text: String| if args.json { Ok(()) } else { emit(&text) };
    say("Repairing a program by tree search\n\n".into())?;
    let clock = std::time::Instant::now();
    let create = CreateRequest {
        name: Some(SANDBOX.into()),
        ..CreateRequest::default()
    };
    // The first call also starts the daemon and makes its store.
    let health: deltabox_api::Health = client.get("/health")?;
    let start_ms = clock.elapsed().as_secs_f64() * 1e3;
    let clock = std::time::Instant::now();
    let info: SandboxInfo = client.post("/sandboxes", &create)?;
    let create_ms = clock.elapsed().as_secs_f64() * 1e3;
    say(format!(
        "daemon    started in {start_ms:.0} ms with a store on {}\n\
         sandbox   {} created in {create_ms:.1} ms over this machine's root\n",
        health.store.filesystem, info.name
    ))?;
    let found = search::run(client, &material, &mut |line| say(line))?;
    let log: Log = client.get(&sandbox_path(SANDBOX, "/checkpoints"))?;
    if args.json {
        super::output::emit_json(&found.summary(create_ms))?;
    } else {
        emit(&report::describe(client, &material, &found, &log)?)?;
    }
    client.perform(request(
        Method::DELETE,
        &sandbox_path(SANDBOX, "?force=true"),
        OutBody::empty(),
    )?)?;
    if found.repaired.is_some() {
        return Ok(0);
    }
    Err(ApiError::new(
        ErrorKind::Internal,
        "no candidate made all tests pass, although one should",
    )
    .into())
}
