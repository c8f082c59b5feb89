//! `deltabox stats`

use std::collections::BTreeMap;

use deltabox_api::{SandboxInfo, Stats};

use super::failure::Outcome;
use super::output::{emit, emit_json, render, table};
use super::units::{size, size_or_dash};
use crate::client::{Client, sandbox_path};

/// Show what a sandbox, or each of them, uses
#[derive(clap::Args)]
pub struct Args {
    /// Name of the sandbox; all of them when absent
    name: Option<String>,
    /// Print the figures as JSON: one object, or one per name
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Outcome {
    let client = Client::from_env()?;
    let names = match &args.name {
        Some(name) => vec![name.clone()],
        None => {
            let sandboxes: Vec<SandboxInfo> = client.get("/sandboxes")?;
            sandboxes.into_iter().map(|sandbox| sandbox.name).collect()
        }
    };
    let mut all: BTreeMap<String, Stats> = BTreeMap::new();
    for name in names {
        let stats = client.get(&sandbox_path(&name, "/stats?disk=true"))?;
        all.insert(name, stats);
    }
    match &args.name {
        Some(name) if args.json => emit_json(&all[name])?,
        None if args.json => emit_json(&all)?,
        _ => emit(&describe(&all))?,
    }
    Ok(0)
}

fn describe(all: &BTreeMap<String, Stats>) -> String {
    let mut table = table(&[
        "NAME",
        "PROCESSES",
        "MEMORY",
        "PEAK",
        "CPU",
        "KEPT PAGES",
        "CHECKPOINTS",
        "PRIVATE",
        "SHARED",
        "DEPTH",
    ]);
    for (name, stats) in all {
        let cpu = stats
            .cpu_usec
            .map_or_else(|| "-".to_owned(), |usec| format!("{:.2} s", usec as f64 / 1e6));
        table.add_row([
            name.clone(),
            stats.processes.to_string(),
            size_or_dash(stats.memory_bytes),
            size_or_dash(stats.memory_peak_bytes),
            cpu,
            size(stats.page_store_bytes),
            stats.checkpoints.to_string(),
            size_or_dash(stats.disk.map(|disk| disk.private_bytes)),
            size_or_dash(stats.disk.map(|disk| disk.shared_bytes)),
            stats.depth.to_string(),
        ]);
    }
    render(&table)
}
