//! `deltabox doctor`

use deltabox_api::{ApiError, ErrorKind};
use deltabox_doctor::{Options, Report, Status};

use super::failure::Outcome;
use super::output::{emit, emit_json};
use crate::client::Home;

/// Test what this machine can do, by doing it; the exit code tells whether sandboxes can run
#[derive(clap::Args)]
pub struct Args {
    /// Print the results as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Outcome {
    let home = Home::from_env()?;
    let failed = |error: deltabox_doctor::Error| ApiError::new(ErrorKind::Unsupported, error.to_string());
    let report = deltabox_doctor::run(&Options::new(home.path()).map_err(failed)?).map_err(failed)?;
    if args.json {
        emit_json(&report)?;
    } else {
        emit(&describe(&report))?;
    }
    Ok(if report.can_run() {
        0
    } else {
        ErrorKind::Unsupported.exit_code()
    })
}

fn describe(report: &Report) -> String {
    let mut text = String::new();
    for check in &report.checks {
        let (mark, word) = match check.status {
            Status::Works => ("✓", "works"),
            Status::Degraded => ("~", "degraded"),
            Status::Missing => ("✗", "missing"),
        };
        text += &format!("{mark} {:<28} {word:<9} {}\n", check.name, check.detail);
        if check.status != Status::Works {
            text += &format!(
                "    without it: {}\n    to get it:  {}\n",
                check.lost, check.remedy
            );
        }
    }
    text + if report.can_run() {
        "\nthis machine can run sandboxes\n"
    } else {
        "\nthis machine cannot run sandboxes: see what is missing above\n"
    }
}
