//! A daemon that is killed leaves nothing mounted, and everything it had frozen.

mod support;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use deltabox_layers::{Base, Frozen, StoreKind, Way};
use support::{Sandbox, isolated_in, open};

const CHILD: &str = "DELTABOX_TEST_KILLED_IN";

#[test]
fn what_was_frozen_before_a_kill_is_there_after() {
    // This test runs itself as the program to be killed.
    if let Ok(dir) = std::env::var(CHILD) {
        isolated_in(Path::new(&dir), freeze_until_killed);
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("base")).unwrap();
    for round in 0..3 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "what_was_frozen_before_a_kill_is_there_after",
                "--nocapture",
            ])
            .env(CHILD, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap())
            .lines()
            .map_while(Result::ok);
        let states = lines.filter_map(|line| serde_json::from_str::<(usize, Frozen)>(&line).ok());
        let told: Vec<_> = states.take(10 + round * 7).collect();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!told.is_empty());
        assert!(
            !fs::read_to_string("/proc/self/mountinfo")
                .unwrap()
                .contains(dir.path().to_str().unwrap())
        );
        isolated_in(dir.path(), move |dir| check(dir, &told));
        for name in ["root", "again"] {
            let _ = fs::remove_dir(dir.path().join(name));
        }
    }
}

fn freeze_until_killed(dir: &Path) {
    let store = open(dir, StoreKind::Btrfs);
    let mut sandbox = Sandbox::create(&store, dir, "root", Base::directory(dir.join("base")));
    for step in 0.. {
        sandbox.write("step", &step.to_string());
        sandbox.write(&format!("step{step}"), &"x".repeat(step));
        let frozen = sandbox.freeze(if step % 3 == 0 { Way::Snapshot } else { Way::Switch });
        sandbox.files.prepare().unwrap();
        if step % 5 == 4 {
            sandbox.files.squash_job().run().unwrap();
        }
        println!("\n{}", serde_json::to_string(&(step, frozen)).unwrap());
    }
}

fn check(dir: &Path, told: &[(usize, Frozen)]) {
    let store = open(dir, StoreKind::Btrfs);
    let states: Vec<Frozen> = told.iter().map(|(_, state)| *state).collect();
    store.collect(store.horizon(), &states).unwrap();
    store.settle();
    let base = Base::directory(dir.join("base"));
    let mut sandbox = Sandbox::fork(&store, dir, "again", base, &states[0]);
    for (step, state) in told {
        assert!(store.contains(state).unwrap());
        sandbox.rollback(state);
        assert_eq!(sandbox.read("step"), step.to_string());
        assert_eq!(sandbox.read(&format!("step{step}")).len(), *step);
        assert!(!sandbox.has(&format!("step{}", step + 1)));
    }
}
