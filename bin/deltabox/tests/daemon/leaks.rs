//! What a sandbox took goes back.

use std::fs;

use rustix::process::Pid;

use crate::support::{Home, PATIENCE, cgroups, descendants, until};

/// What a daemon holds.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Held {
    descriptors: usize,
    threads: usize,
    mounts: usize,
    processes: usize,
    cgroups: usize,
    volumes: usize,
}

impl Held {
    fn by(home: &Home, daemon: Pid, group: &str) -> Self {
        let own = |name: &str| format!("/proc/{}/{name}", daemon.as_raw_nonzero());
        let count = |path: &str| fs::read_dir(path).map_or(0, Iterator::count);
        Self {
            descriptors: count(&own("fd")),
            threads: count(&own("task")),
            mounts: fs::read_to_string(own("mountinfo")).unwrap().lines().count(),
            processes: descendants(daemon).len(),
            cgroups: cgroups(group).len(),
            volumes: home.volumes(),
        }
    }

    fn at_most(&self, other: &Self) -> bool {
        self.descriptors <= other.descriptors
            && self.threads <= other.threads
            && self.mounts <= other.mounts
            && self.processes <= other.processes
            && self.cgroups <= other.cgroups
            && self.volumes <= other.volumes
    }
}

fn cycle(home: &Home, number: usize) {
    let name = format!("box{number}");
    home.ok(&["create", "--name", &name]);
    home.sh(&name, "echo 1 > /x");
    home.ok(&["checkpoint", &name, "--label", "one"]);
    home.ok(&["exec", "-d", &name, "--", "/bin/sleep", "1000"]);
    home.sh(&name, "echo 2 > /x");
    home.ok(&["checkpoint", &name, "--label", "two"]);
    home.ok(&["rollback", &name, "one"]);
    assert_eq!(home.sh(&name, "cat /x"), "1");
    home.ok(&["rollback", &name, "two"]);
    home.ok(&["rm", "--force", &name]);
}

#[test]
fn nothing_is_left_of_removed_sandboxes() {
    let home = Home::new();
    home.ok(&["create", "--name", "first"]);
    let group = home.cgroup("first");
    let one = Held::by(&home, home.daemon().unwrap(), &group);
    assert!(one.volumes > 0 && one.cgroups > 0 && one.processes > 1, "{one:?}");
    home.ok(&["rm", "first"]);
    for number in 0..3 {
        cycle(&home, number);
    }
    let daemon = home.daemon().unwrap();
    let held = || Held::by(&home, daemon, &group);
    // Threads that wait for more work end after ten seconds.
    let mut before = held();
    let settled = std::time::Instant::now() + std::time::Duration::from_secs(12);
    while std::time::Instant::now() < settled {
        std::thread::sleep(std::time::Duration::from_millis(500));
        before = held();
    }
    for number in 0..30 {
        cycle(&home, number);
    }
    let mut after = held();
    let deadline = std::time::Instant::now() + PATIENCE;
    while !after.at_most(&before) && std::time::Instant::now() < deadline {
        std::thread::sleep(std::time::Duration::from_millis(500));
        after = held();
    }
    assert!(after.at_most(&before), "before {before:?}, after {after:?}");
    home.ok(&["stop"]);
    until("the loop device is gone", || home.loop_devices() == 0);
    assert_eq!(cgroups(&group), Vec::<std::path::PathBuf>::new());
}
