//! The daemon is killed at any moment.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::support::{Home, PATIENCE, Random, cgroups, descendants, ended, setting, until};
use crate::witness::{self, remembers};

/// How often the daemon is killed; `DELTABOX_CRASH_ROUNDS` says another number.
const ROUNDS: usize = 5;

/// Changes files and checkpoints until the daemon is gone; returns what each checkpoint known to be durable holds.
fn load(home: &Home, round: usize) -> Vec<(String, String)> {
    let mut durable = Vec::new();
    for step in 0.. {
        let script = format!(
            "echo {round}.{step} > /data/step; seq 1 $((({round} * 131 + {step} * 37) % 5000)) > /data/blob; \
             ln -sf {step} /data/link; rm -f /data/gone; cksum /data/step /data/blob; readlink /data/link"
        );
        let written = home.output(&["exec", "box", "--", "/bin/sh", "-ec", &script]);
        if !written.status.success() {
            return durable;
        }
        let wait = if step % 2 == 0 { "durable" } else { "ready" };
        let made = home.output(&["checkpoint", "box", "--wait", wait, "--json"]);
        let Ok(made) = serde_json::from_slice::<Value>(&made.stdout) else {
            return durable;
        };
        if made["durable"] == true {
            let sums = String::from_utf8(written.stdout).unwrap().trim_end().to_owned();
            durable.push((made["id"].as_str().unwrap().to_owned(), sums));
        }
    }
    unreachable!("the daemon is killed")
}

#[test]
fn a_killed_daemon_leaves_nothing_behind_and_loses_no_durable_checkpoint() {
    let home = Arc::new(Home::new());
    let mut random = Random::new();
    home.ok(&["create", "--name", "box"]);
    home.sh("box", "mkdir /data");
    let group = home.cgroup("box");
    let mut known: BTreeMap<String, String> = BTreeMap::new();
    for round in 0..setting("DELTABOX_CRASH_ROUNDS", ROUNDS) {
        // Processes make the file half go another way.
        if round % 2 == 1 {
            home.ok(&["exec", "-d", "box", "--", "/bin/sleep", "1000"]);
        }
        let worker = std::thread::spawn({
            let home = home.clone();
            move || load(&home, round)
        });
        std::thread::sleep(Duration::from_millis(300 + random.below(900) as u64));
        let before = descendants(home.daemon().unwrap());
        assert!(before.len() > 1, "a spawner and an init at least");
        home.kill_daemon();
        known.extend(worker.join().unwrap());
        for (pid, process) in &before {
            assert!(ended(process, PATIENCE), "process {pid} outlived the daemon");
        }
        // Starts the next one.
        let log = home.json(&["log", "box"]);
        until("only the new daemon's loop device is left", || {
            home.loop_devices() <= 1
        });
        assert_eq!(home.mounts(), 0);
        let nodes = log["checkpoints"].as_array().unwrap();
        assert!(nodes.iter().all(|node| node["durable"] == true), "{log}");
        for id in known.keys() {
            assert!(nodes.iter().any(|node| node["id"] == **id), "{id} is lost: {log}");
        }
        let mut ids: Vec<_> = known.keys().collect();
        for _ in 0..4.min(ids.len()) {
            let id = ids.swap_remove(random.below(ids.len()));
            home.ok(&["rollback", "box", id]);
            let found = home.sh("box", "cksum /data/step /data/blob; readlink /data/link");
            assert_eq!(found, known[id], "files of {id}");
        }
        if known.is_empty() {
            home.ok(&["rm", "--force", "box"]);
            home.ok(&["create", "--name", "box"]);
            home.sh("box", "mkdir /data");
        }
    }
    assert!(!known.is_empty(), "no checkpoint became durable in any round");
    home.ok(&["rm", "--force", "box"]);
    home.ok(&["stop"]);
    until("the loop device is gone", || home.loop_devices() == 0);
    assert_eq!(cgroups(&group), Vec::<std::path::PathBuf>::new());
    assert_eq!(home.mounts(), 0);
}

/// Tells the witness words, checkpoints and rolls back until the daemon is gone; returns what each checkpoint known to be
/// durable remembers.
fn load_witness(
    home: &Home,
    mut words: String,
    random: &mut Random,
    killed: &AtomicBool,
) -> Vec<(String, String)> {
    let mut durable: Vec<(String, String)> = Vec::new();
    // A command that comes after the kill would start the next daemon, and a rollback would bring the sandbox back.
    let goes_on = || !killed.load(Ordering::SeqCst);
    for step in 0.. {
        let word = format!("w{}", random.below(1000));
        let script = witness::telling(&word);
        if !goes_on()
            || !home
                .output(&["exec", "box", "--", "/bin/sh", "-euc", &script])
                .status
                .success()
            || !goes_on()
        {
            break;
        }
        words = format!("{words} {word}");
        let wait = if step % 3 == 0 { "durable" } else { "ready" };
        let made = home.output(&["checkpoint", "box", "--wait", wait, "--json"]);
        let Ok(made) = serde_json::from_slice::<Value>(&made.stdout) else {
            break;
        };
        if made["durable"] == true {
            durable.push((made["id"].as_str().unwrap().to_owned(), words.clone()));
        }
        if step % 4 == 3 && !durable.is_empty() && goes_on() {
            let (id, then) = &durable[random.below(durable.len())];
            words.clone_from(then);
            if !home.output(&["rollback", "box", id]).status.success() {
                break;
            }
        }
    }
    durable
}

#[test]
fn processes_of_durable_checkpoints_outlive_daemons_killed_under_load() {
    let home = Arc::new(Home::new());
    let mut random = Random::new();
    home.ok(&["create", "--name", "box"]);
    witness::start(&home, "box");
    remembers(&home, "box", "first", "first");
    let first = home.ok(&["checkpoint", "box", "--wait", "durable"]);
    let mut known = vec![(first, "first".to_owned())];
    let mut words = "first".to_owned();
    for _ in 0..setting("DELTABOX_CRASH_ROUNDS", ROUNDS) {
        let killed = Arc::new(AtomicBool::new(false));
        let worker = std::thread::spawn({
            let (home, words, mut random) = (home.clone(), words.clone(), random.split());
            let killed = killed.clone();
            move || load_witness(&home, words, &mut random, &killed)
        });
        std::thread::sleep(Duration::from_millis(100 + random.below(1500) as u64));
        killed.store(true, Ordering::SeqCst);
        home.kill_daemon();
        known.extend(worker.join().unwrap());
        // Starts the next one.
        let log = home.json(&["log", "box"]);
        let nodes = log["checkpoints"].as_array().unwrap();
        assert!(nodes.iter().all(|node| node["durable"] == true), "{log}");
        let segments = std::fs::read_dir(home.path().join("segments")).unwrap();
        assert_eq!(segments.count(), nodes.len(), "segments without a checkpoint");
        for (id, _) in &known {
            assert!(nodes.iter().any(|node| node["id"] == **id), "{id} is lost: {log}");
        }
        for _ in 0..3 {
            let (id, then) = &known[random.below(known.len())];
            home.ok(&["rollback", "box", id]);
            remembers(&home, "box", "", then);
            words.clone_from(then);
        }
    }
    assert_eq!(home.json(&["fsck"])["damaged"].as_array().unwrap().len(), 0);
    assert!(known.len() > 1, "no checkpoint became durable in any round");
}

#[test]
fn two_daemons_live_side_by_side_and_one_directory_has_one() {
    let (one, two) = (Home::new(), Home::new());
    one.ok(&["create", "--name", "box"]);
    two.ok(&["create", "--name", "box"]);
    one.sh("box", "echo one > /which");
    two.sh("box", "echo two > /which");
    let said = one.refuses(4, &["serve"]);
    assert!(said.contains("another daemon"), "{said}");
    two.ok(&["stop"]);
    assert_eq!(one.sh("box", "cat /which"), "one");
}
