//! `deltabox inspect`

use std::fmt::Write;

use deltabox_api::SandboxInfo;

use super::failure::Outcome;
use super::output::{emit, emit_json, printable};
use super::{ls, units};
use crate::client::{Client, sandbox_path};

/// Show everything about a sandbox
#[derive(clap::Args)]
pub struct Args {
    /// Name of the sandbox
    name: String,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Outcome {
    let sandbox: SandboxInfo = Client::from_env()?.get(&sandbox_path(&args.name, ""))?;
    if args.json {
        emit_json(&sandbox)?;
    } else {
        emit(&describe(&sandbox))?;
    }
    Ok(0)
}

fn describe(sandbox: &SandboxInfo) -> String {
    let mut text = String::new();
    let mut line = |key: &str, value: String| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{key:<12} {}", printable(&value));
    };
    let none = || "-".to_owned();
    line("name", sandbox.name.clone());
    line("id", sandbox.id.clone());
    line("status", ls::status(sandbox.status).to_owned());
    line("root", ls::root(&sandbox.root));
    line("age", units::age(sandbox.created_unix.saturating_mul(1000)));
    line("current", sandbox.current.clone().unwrap_or_else(none));
    line("checkpoints", sandbox.checkpoints.to_string());
    line(
        "init pid",
        sandbox.init_pid.map_or_else(none, |pid| pid.to_string()),
    );
    line("memory limit", units::size_or_dash(sandbox.limits.memory_bytes));
    line(
        "cpu limit",
        sandbox.limits.cpus.map_or_else(none, |cpus| cpus.to_string()),
    );
    line(
        "pids limit",
        sandbox.limits.pids.map_or_else(none, |pids| pids.to_string()),
    );
    for mount in &sandbox.mounts {
        let mode = if mount.read_only { "ro" } else { "rw" };
        line("mount", format!("{} at {} ({mode})", mount.source, mount.target));
    }
    for (name, value) in &sandbox.env {
        line("env", format!("{name}={value}"));
    }
    for exec in &sandbox.execs {
        let tty = if exec.tty { " (terminal)" } else { "" };
        line(
            "command",
            format!("{} pid {}{tty}: {}", exec.id, exec.pid, exec.argv.join(" ")),
        );
    }
    for (phase, value) in &sandbox.phases_ms {
        line("creation", format!("{phase} {}", units::milliseconds(*value)));
    }
    text
}
