//! What a sandbox took goes back.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::Pid;

use crate::support::{Home, PATIENCE, cgroups, descendants, until};
use crate::witness::{self, remembers};

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

/// What is held once threads that wait for more work have ended, which they do after ten seconds.
fn settled(home: &Home, daemon: Pid, group: &str) -> Held {
    std::thread::sleep(Duration::from_secs(12));
    Held::by(home, daemon, group)
}

/// Waits until nothing more is held than `before`.
fn comes_back(home: &Home, daemon: Pid, group: &str, before: &Held) {
    let deadline = Instant::now() + PATIENCE;
    let mut after = Held::by(home, daemon, group);
    while !after.at_most(before) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(500));
        after = Held::by(home, daemon, group);
    }
    assert!(after.at_most(before), "before {before:?}, after {after:?}");
}

fn nothing_is_left_when_stopped(home: &Home, group: &str) {
    home.ok(&["stop"]);
    until("the loop device is gone", || home.loop_devices() == 0);
    assert_eq!(cgroups(group), Vec::<std::path::PathBuf>::new());
}

#[test]
fn nothing_is_left_of_removed_sandboxes() {
    let home = Home::new();
    home.ok(&["create", "--name", "first"]);
    let group = home.cgroup("first");
    let daemon = home.daemon().unwrap();
    let one = Held::by(&home, daemon, &group);
    assert!(one.volumes > 0 && one.cgroups > 0 && one.processes > 1, "{one:?}");
    home.ok(&["rm", "first"]);
    for number in 0..3 {
        cycle(&home, number);
    }
    let before = settled(&home, daemon, &group);
    for number in 0..30 {
        cycle(&home, number);
    }
    comes_back(&home, daemon, &group, &before);
    nothing_is_left_when_stopped(&home, &group);
}

/// Bytes of memory of its own that a process has.
fn own_memory(process: Pid) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", process.as_raw_nonzero())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kilobytes: u64 = line.unwrap().trim().trim_end_matches(" kB").parse().unwrap();
    kilobytes << 10
}

#[test]
fn nothing_is_left_of_two_hundred_forks() {
    const AT_ONCE: usize = 10;
    let home = Home::new();
    home.ok(&["create", "--name", "source"]);
    let group = home.cgroup("source");
    let daemon = home.daemon().unwrap();
    witness::start(&home, "source");
    let round = || {
        let children = home.ok(&["fork", "source", "-n", &AT_ONCE.to_string(), "--from", "@"]);
        let children: Vec<&str> = children.lines().collect();
        assert_eq!(children.len(), AT_ONCE);
        for child in &children {
            home.ok(&["rm", "--force", child]);
        }
    };
    home.ok(&["checkpoint", "source"]);
    round();
    let (before, memory) = (settled(&home, daemon, &group), own_memory(daemon));
    for _ in 0..200 / AT_ONCE {
        round();
    }
    comes_back(&home, daemon, &group, &before);
    // Room for what the allocator keeps of the busiest moment: a third of a megabyte for each child.
    let left = own_memory(daemon).saturating_sub(memory);
    assert!(left < 64 << 20, "{} MB more than before", left >> 20);
    remembers(&home, "source", "still", "still");
    home.ok(&["rm", "--force", "source"]);
    nothing_is_left_when_stopped(&home, &group);
}
