use std::io::{Read, Write};

use deltabox_isolation::{Error, ExitStatus, KillTarget, Stdio};

use crate::support::{World, piped, run, run_spec, sh, spec, start, wait_for};

#[test]
fn output_and_exit_codes_come_back() {
    let world = World::new();
    let cell = world.cell();
    let output = run(&cell, &["/bin/sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!(output.text, "out\nerr\n");
    assert_eq!(output.status, ExitStatus::Code(7));
    assert_eq!(run(&cell, &["true"]).status, ExitStatus::Code(0));
    cell.destroy().unwrap();
}

#[test]
fn signals_end_commands_and_are_told_from_codes() {
    let world = World::new();
    let cell = world.cell();
    let (sleeper, _) = start(&cell, &["sleep", "100"]);
    cell.signal(KillTarget::Process(sleeper.pid_inside), libc::SIGTERM)
        .unwrap();
    assert_eq!(
        wait_for(&cell, &sleeper),
        ExitStatus::Signal {
            signal: libc::SIGTERM,
            core: false
        }
    );
    let (group, _) = start(&cell, &["sh", "-c", "sleep 100 & sleep 100"]);
    cell.signal(KillTarget::Group(group.pid_inside), libc::SIGKILL)
        .unwrap();
    assert_eq!(
        wait_for(&cell, &group),
        ExitStatus::Signal {
            signal: libc::SIGKILL,
            core: false
        }
    );
    assert!(cell.signal(KillTarget::Process(1), libc::SIGKILL).is_err());
    cell.ping().unwrap();
}
