//! End-to-end tests: the real `deltabox` program, driven through its command line as a user would.
//!
//! The drivers are Python programs without dependencies (`driver/`, `../real/`), because what they drive is
//! interactive; the tests in `tests/` run them, so that one `cargo test` covers everything. Each can be run by hand:
//!
//! - `driver/probes.py`: every probe program of `../probes` through every scenario
//! - `driver/model.py`: the state model test
//! - `driver/watch.py`: a watcher that must see nothing of many checkpoints
//! - `../real/run.py`: real programs
//! - `../probes/selftest.py`: the probes by themselves: each can pass, and each can fail
//!
//! They take the program from `DELTABOX_BIN`, or the newest one in the target directory.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs a driver, named from the directory of the tests, and fails with its output when it does.
///
/// # Panics
/// When the driver cannot be started or its exit status is not zero.
pub fn run_driver(driver: &str, arguments: &[&str]) {
    let path = tests_directory().join(driver);
    let mut command = Command::new("python3");
    command
        .arg(&path)
        .args(arguments)
        .env("PYTHONDONTWRITEBYTECODE", "1");
    if std::env::var_os("DELTABOX_BIN").is_none() {
        command.env("DELTABOX_BIN", built_program());
    }
    let status = command
        .status()
        .unwrap_or_else(|error| panic!("cannot run {}: {error}", path.display()));
    assert!(
        status.success(),
        "{driver} {arguments:?}: {status}, see its output above"
    );
}

fn tests_directory() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().expect("the crate lies in a directory").to_owned()
}

/// The program beside this test: `target/<profile>/deltabox`; built when it is missing.
fn built_program() -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its program");
    let profile = test
        .ancestors()
        .find(|directory| directory.file_name().is_some_and(|name| name == "deps"))
        .and_then(Path::parent)
        .expect("tests are built into <profile>/deps");
    let program = profile.join("deltabox");
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--package", "deltabox", "--target-dir"]);
    build.arg(profile.parent().expect("a profile lies in the target directory"));
    if profile.file_name().is_some_and(|name| name == "release") {
        build.arg("--release");
    }
    let status = build.current_dir(tests_directory()).status().expect("cargo runs");
    assert!(status.success(), "cannot build the deltabox program");
    program
}
