//! The project's probe programs, as far as they do not need files to be rolled back: each through "go on", "undo" and
//! "kill everything and make it again".

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use deltabox_process::{Host, Image};

use crate::sandbox::{Program, Sandbox, compiled_from};

fn probes() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/probes")
}

fn start(sandbox: &mut Sandbox, name: &str) -> Result<Program, String> {
    let program = compiled_from(&probes().join(format!("{name}.c")));
    let directory = sandbox.engine.host().directory().join("work");
    std::fs::create_dir_all(&directory).unwrap();
    let command = format!("cd {} && exec {}", directory.display(), program.display());
    let mut probe = sandbox.start(&["/bin/sh", "-c", &command]);
    match probe.line().as_str() {
        "READY" => Ok(probe),
        other => Err(other.to_owned()),
    }
}

fn letter(probe: &mut Program, letter: &str) -> Result<(), String> {
    probe.send(letter);
    let answer = probe.line();
    if answer == "PASS" || answer == "OK" || answer.starts_with("NOOP") {
        Ok(())
    } else {
        Err(answer)
    }
}

fn checkpoint(sandbox: &mut Sandbox) -> Result<Image, String> {
    sandbox.try_checkpoint()
}

fn go_on(name: &str) -> Result<(), String> {
    let mut sandbox = Sandbox::new();
    let mut probe = start(&mut sandbox, name)?;
    for _ in 0..3 {
        checkpoint(&mut sandbox)?;
    }
    letter(&mut probe, "c")
}

fn undo(name: &str) -> Result<(), String> {
    let mut sandbox = Sandbox::new();
    let mut probe = start(&mut sandbox, name)?;
    let image = checkpoint(&mut sandbox)?;
    letter(&mut probe, "m")?;
    sandbox.try_rollback(&image)?;
    letter(&mut probe, "c")?;
    sandbox.try_rollback(&image)?;
    letter(&mut probe, "c")
}

fn again(name: &str) -> Result<(), String> {
    let mut sandbox = Sandbox::new();
    let mut probe = start(&mut sandbox, name)?;
    let image = checkpoint(&mut sandbox)?;
    sandbox.kill_all();
    assert!(sandbox.engine.host().pids().unwrap().is_empty());
    sandbox.try_rollback(&image)?;
    letter(&mut probe, "c")?;
    sandbox.try_rollback(&image)?;
    letter(&mut probe, "c")
}

type Scenario = (&'static str, fn(&str) -> Result<(), String>);
const SCENARIOS: [Scenario; 3] = [("go on", go_on), ("undo", undo), ("again", again)];

fn run(name: &str, scenario: Scenario) -> String {
    match catch_unwind(AssertUnwindSafe(|| scenario.1(name))) {
        Ok(Ok(())) => "ok".to_owned(),
        Ok(Err(why)) => why,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
                .unwrap_or_default()
        }
    }
}

/// Run with `PROBES=mem_,sig_` to see how the probes with these beginnings fare.
#[test]
#[ignore = "for looking at, not for passing"]
fn table() {
    let wanted = std::env::var("PROBES").unwrap_or_default();
    let mut names: Vec<String> = std::fs::read_dir(probes())
        .unwrap()
        .filter_map(|entry| {
            entry
                .unwrap()
                .file_name()
                .to_str()?
                .strip_suffix(".c")
                .map(str::to_owned)
        })
        .filter(|name| wanted.split(',').any(|prefix| name.starts_with(prefix)))
        .collect();
    names.sort();
    let mut passed = 0;
    for name in &names {
        for scenario in SCENARIOS {
            let result = run(name, scenario);
            if result == "ok" {
                passed += 1;
            } else {
                println!("{name:24} {:6} {result}", scenario.0);
            }
        }
    }
    println!("{passed} of {} passed", names.len() * SCENARIOS.len());
}
