//! The daemon ends, the power is cut or the disk fails at every step by which something becomes durable, in turn.
//!
//! `DELTABOX_FAULT_STRIDE` says how many steps lie between two that are tried (1: all of them).

use std::fs;

use crate::support::{Home, assert_clear, setting, until};

/// A process with an open file that has no name.
const PROGRAM: &str = "exec 3<>/gone; echo kept >&3; rm /gone; touch /ready; exec sleep 1000";
/// More steps than any scenario has.
const MANY: usize = 2000;

/// What was asked of the daemon, and what it answered.
#[derive(Default, Debug)]
struct Told {
    /// Durable checkpoints, with what the file held.
    durable: Vec<(String, &'static str)>,
    removing: bool,
    removed: bool,
}

/// Makes two durable checkpoints and removes the sandbox; ends early when something fails.
fn scenario(home: &Home, told: &mut Told) -> Option<()> {
    let done = |arguments: &[&str]| {
        let output = home.output(arguments);
        output.status.success().then_some(output.stdout)
    };
    let sh = |script: &str| done(&["exec", "box", "--", "/bin/sh", "-euc", script]);
    done(&["create", "--name", "box"])?;
    done(&["exec", "-d", "box", "--", "/bin/sh", "-euc", PROGRAM])?;
    sh("while ! [ -e /ready ]; do sleep 0.01; done")?;
    for word in ["one", "two"] {
        sh(&format!("echo {word} > /step"))?;
        let made = done(&["checkpoint", "box", "--wait", "durable"])?;
        let id = String::from_utf8(made).unwrap().trim_end().to_owned();
        told.durable.push((id, word));
    }
    told.removing = true;
    done(&["rm", "--force", "box"])?;
    told.removed = true;
    Some(())
}

fn count(home: &Home, directory: &str) -> usize {
    fs::read_dir(home.path().join(directory)).map_or(0, Iterator::count)
}

/// Volumes of the store of a running daemon.
fn volumes(home: &Home) -> usize {
    let daemon = home.daemon().unwrap().as_raw_nonzero();
    let store = format!("/proc/{daemon}/root{}/store/mnt/volumes", home.path().display());
    fs::read_dir(store).unwrap().count()
}

/// What a new daemon finds is what the one before has told, whole, and nothing else is there.
#[track_caller]
fn verify(home: &Home, told: &Told) {
    // Starts it.
    let listed = home.json(&["ls"]);
    let there = listed
        .as_array()
        .unwrap()
        .iter()
        .any(|sandbox| sandbox["name"] == "box");
    assert_eq!(home.mounts(), 0);
    until("only the new daemon's loop device is left", || {
        home.loop_devices() <= 1
    });
    assert!(!(told.removed && there), "{listed}");
    let mut checkpoints = 0;
    if there {
        let log = home.json(&["log", "box"]);
        let nodes = log["checkpoints"].as_array().unwrap();
        checkpoints = nodes.len();
        assert!(nodes.iter().all(|node| node["durable"] == true), "{log}");
        for (id, word) in &told.durable {
            assert!(nodes.iter().any(|node| node["id"] == **id), "{id} is lost: {log}");
            home.ok(&["rollback", "box", id]);
            assert_eq!(home.sh("box", "cat /step /proc/2/fd/3"), format!("{word}\nkept"));
        }
        for node in nodes {
            home.ok(&["rollback", "box", node["id"].as_str().unwrap()]);
            assert_eq!(home.sh("box", "cat /proc/2/fd/3"), "kept");
        }
    } else {
        assert!(
            told.removing || told.durable.is_empty(),
            "the sandbox is lost: {told:?}"
        );
    }
    let found = home.json(&["fsck"]);
    assert_eq!(
        (&found["checkpoints"], found["damaged"].as_array().unwrap().len()),
        (&checkpoints.into(), 0)
    );
    assert_eq!(
        count(home, "segments"),
        checkpoints,
        "segments without a checkpoint"
    );
    assert_eq!(
        count(home, "contents"),
        usize::from(there),
        "contents without a sandbox"
    );
    if there {
        home.ok(&["rm", "--force", "box"]);
    }
    assert_eq!((count(home, "segments"), count(home, "contents")), (0, 0));
    until("no volume is left", || volumes(home) == 0);
    home.ok(&["stop"]);
    until("no loop device is left", || home.loop_devices() == 0);
}

/// The daemon with a fault at each step in turn, until there are no more steps.
fn at_each_step(fault: impl Fn(usize) -> String, run: impl Fn(&Home, &mut Told) -> Option<()>) {
    let home = Home::new();
    let stride = setting("DELTABOX_FAULT_STRIDE", 5);
    for step in (1..MANY).step_by(stride) {
        let fault = fault(step);
        eprintln!("{fault}");
        let mut daemon = home.serve(&["--pool", "1"], &[("DELTABOX_FAULT", &fault)]);
        let mut told = Told::default();
        let finished = run(&home, &mut told).is_some();
        let untouched = daemon.try_wait().unwrap().is_none() && !home.log().contains("DELTABOX_FAULT");
        if daemon.try_wait().unwrap().is_none() {
            daemon.kill().unwrap();
        } else {
            // Commands have started another one.
            home.ok(&["stop"]);
        }
        daemon.wait().unwrap();
        verify(&home, &told);
        if finished && untouched {
            assert!(step > 20, "only {step} steps");
            return;
        }
    }
    panic!("there are more than {MANY} steps");
}

#[test]
fn a_daemon_killed_at_any_step_leaves_whole_checkpoints_and_nothing_else() {
    at_each_step(|step| format!("kill:{step}"), scenario);
}

#[test]
fn power_cut_at_any_step_leaves_whole_checkpoints_and_nothing_else() {
    at_each_step(|step| format!("cut:{step}"), scenario);
}

/// What fails is tried again, as a person would.
fn with_patience(home: &Home, told: &mut Told) -> Option<()> {
    let done = |arguments: &[&str]| {
        for _ in 0..4 {
            let output = home.output(arguments);
            if output.status.success() {
                return String::from_utf8(output.stdout).unwrap().trim_end().to_owned();
            }
            assert_clear(&String::from_utf8(output.stderr).unwrap());
        }
        panic!("{arguments:?} never works again: {}", home.log());
    };
    let sh = |script: &str| done(&["exec", "box", "--", "/bin/sh", "-euc", script]);
    done(&["create", "--name", "box"]);
    done(&["exec", "-d", "box", "--", "/bin/sh", "-euc", PROGRAM]);
    sh("while ! [ -e /ready ]; do sleep 0.01; done");
    for word in ["one", "two"] {
        sh(&format!("echo {word} > /step"));
        told.durable
            .push((done(&["checkpoint", "box", "--wait", "durable"]), word));
        for (id, word) in &told.durable {
            done(&["rollback", "box", id]);
            assert_eq!(sh("cat /step /proc/2/fd/3"), format!("{word}\nkept"));
        }
    }
    told.removing = true;
    done(&["rm", "--force", "box"]);
    told.removed = true;
    Some(())
}

#[test]
fn a_disk_that_fails_at_any_step_harms_no_checkpoint_and_works_again() {
    at_each_step(|step| format!("fail:{step}:2"), with_patience);
}
