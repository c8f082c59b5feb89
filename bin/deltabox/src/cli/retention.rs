//! `deltabox retention`

use deltabox_api::{Retention, SandboxInfo};
use hyper::Method;

use super::failure::Outcome;
use super::output::{emit, emit_json};
use super::units::{parse_duration_ms, parse_size, size};
use crate::client::{Client, json_request, sandbox_path};

/// Limit how much history a sandbox keeps, or show its limits
#[derive(clap::Args)]
pub struct Args {
    /// Name of the sandbox
    name: String,
    #[command(flatten)]
    limits: Limits,
    /// Keep everything
    #[arg(long, conflicts_with_all = ["keep_last", "keep_age", "keep_bytes", "ancestors"])]
    unlimited: bool,
    /// Print the limits as JSON
    #[arg(long)]
    json: bool,
}

/// Options that limit the history.
#[derive(clap::Args)]
pub struct Limits {
    /// Keep only so many checkpoints, the last ones made
    #[arg(long, value_name = "N")]
    keep_last: Option<usize>,
    /// Keep only checkpoints that are not older, for example 12h
    #[arg(long, value_name = "DURATION", value_parser = parse_duration_ms)]
    keep_age: Option<u64>,
    /// Keep only as many checkpoints as take so much on disk, for example 10G
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    keep_bytes: Option<u64>,
    /// The limits are for the ancestors of the current checkpoint too
    #[arg(long)]
    ancestors: bool,
}

impl Limits {
    pub fn retention(&self) -> Retention {
        Retention {
            keep_last: self.keep_last,
            keep_age_ms: self.keep_age,
            keep_bytes: self.keep_bytes,
            ancestors: self.ancestors,
        }
    }
}

pub fn run(args: &Args) -> Outcome {
    let client = Client::from_env()?;
    let wanted = args.limits.retention();
    if args.unlimited || wanted != Retention::default() {
        let path = sandbox_path(&args.name, "/retention");
        client.perform(json_request(Method::PUT, &path, &wanted)?)?;
        return Ok(0);
    }
    let sandbox: SandboxInfo = client.get(&sandbox_path(&args.name, ""))?;
    if args.json {
        emit_json(&sandbox.retention)?;
    } else {
        emit(&format!("{}\n", describe(&sandbox.retention)))?;
    }
    Ok(0)
}

/// The limits as a person reads them.
pub fn describe(retention: &Retention) -> String {
    let mut limits = Vec::new();
    limits.extend(retention.keep_last.map(|count| format!("the last {count}")));
    limits.extend(
        retention
            .keep_age_ms
            .map(|age| format!("not older than {} s", age as f64 / 1e3)),
    );
    limits.extend(
        retention
            .keep_bytes
            .map(|bytes| format!("at most {}", size(bytes))),
    );
    if limits.is_empty() {
        return "unlimited".to_owned();
    }
    if retention.ancestors {
        limits.push("ancestors too".to_owned());
    }
    limits.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_told_in_words() {
        assert_eq!(describe(&Retention::default()), "unlimited");
        let all = Retention {
            keep_last: Some(3),
            keep_age_ms: Some(1500),
            keep_bytes: Some(1 << 30),
            ancestors: true,
        };
        assert_eq!(
            describe(&all),
            "the last 3, not older than 1.5 s, at most 1.0 GiB, ancestors too"
        );
    }
}
