//! Whatever fails: nothing stays stopped or traced.

use deltabox_process::{Host, procfs};

use crate::sandbox::Sandbox;

/// Every process of the sandbox runs, and nobody traces it.
fn assert_free(sandbox: &mut Sandbox) {
    for pid in sandbox.engine.host().pids().unwrap() {
        let status = procfs::status(pid).unwrap();
        assert_eq!(status.tracer, 0, "{} is still traced", status.name);
        assert!(
            !matches!(status.state, 't' | 'T'),
            "{} is still stopped",
            status.name
        );
    }
}

#[test]
fn a_process_that_dies_during_a_capture_fails_it_and_the_others_go_on() {
    let mut sandbox = Sandbox::new();
    let (mut one, two) = (sandbox.python(), sandbox.python());
    let host = sandbox.engine.host().host_pid(two.pid).unwrap();
    let mut stopped = sandbox.engine.stop().unwrap();
    let survey = stopped.survey().unwrap();
    rustix::process::kill_process(host.pid(), rustix::process::Signal::KILL).unwrap();
    assert!(stopped.capture(survey, None).is_err());
    drop(stopped);
    assert_free(&mut sandbox);
    assert_eq!(one.ask("_ = 1 + 1"), "2");
}

#[test]
fn a_sandbox_that_cannot_make_processes_fails_a_rollback_and_goes_on() {
    let mut sandbox = Sandbox::new();
    let (mut one, two) = (sandbox.python(), sandbox.python());
    let image = sandbox.checkpoint();
    sandbox.kill(two.pid);
    sandbox.engine.host().refuse = true;
    assert!(sandbox.try_rollback(&image).is_err());
    assert_free(&mut sandbox);
    assert_eq!(one.ask("_ = 1 + 1"), "2");
    sandbox.engine.host().refuse = false;
    sandbox.rollback(&image);
    assert_free(&mut sandbox);
    assert_eq!(one.ask("_ = 1 + 1"), "2");
}

#[test]
fn a_freezer_that_fails_leaves_everything_running() {
    let mut sandbox = Sandbox::new();
    let mut python = sandbox.python();
    sandbox.engine.host().refuse = true;
    assert!(sandbox.try_checkpoint().is_err());
    assert_free(&mut sandbox);
    assert_eq!(python.ask("_ = 1 + 1"), "2");
}
