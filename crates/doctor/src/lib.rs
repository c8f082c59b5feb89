//! Tests each kernel feature that DeltaBox needs by using it, and says what is lost without it and how to get it.
//!
//! Every probe runs in a process of its own, made by executing this program again (`__doctor-probe NAME`), so that
//! it may unshare namespaces, install filters or be stopped, and so that a probe that hangs or dies is a result
//! like any other. Mounts are made in private namespaces; all files are below one directory that the caller of
//! the probes removes.
//!
//! Architecture invariant: nothing here decides anything by a version number except the one check that is about
//! the version.
#![forbid(unsafe_code)]

mod child;
mod probes;
mod report;
mod run;
mod table;

pub use report::{CheckResult, Report, Status, Verdict};
pub use run::{Error, Options, run};
pub use table::{Check, checks};

use report::Outcome;

/// Name of the environment variable with the directory a probe may use.
pub(crate) const DIRECTORY: &str = "DELTABOX_DOCTOR_DIR";

/// The first argument by which a program runs a probe.
pub const PROBE_ARGUMENT: &str = "__doctor-probe";

/// Runs the probe `name` and prints its outcome as one line of JSON. To be called at once by a program whose
/// arguments are [`PROBE_ARGUMENT`] and the name, before it starts any thread. Returns the exit code.
pub fn probe_main(name: &str) -> i32 {
    let Some(check) = table::checks().iter().find(|check| check.name == name) else {
        eprintln!("there is no probe named {name:?}");
        return 2;
    };
    // A doctor that is killed takes its probe along.
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    let outcome = match std::env::var_os(DIRECTORY) {
        Some(directory) => (check.probe)(std::path::Path::new(&directory)),
        None => Outcome::missing(format!("{DIRECTORY} is not set")),
    };
    match serde_json::to_string(&outcome) {
        Ok(line) => {
            println!("{line}");
            0
        }
        Err(error) => {
            eprintln!("the outcome cannot be written: {error}");
            2
        }
    }
}
