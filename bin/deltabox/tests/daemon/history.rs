//! Single checkpoints go, and all others stay what they were.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::support::{Home, Random, until};
use crate::witness::{self, remembers};

/// What a checkpoint holds: what its witness says, and the files of the test.
type States = BTreeMap<String, (String, String)>;

/// A directory's size depends on how many layers it comes from.
const FILES: &str =
    "cd /data && find . -printf '%p %y %m %l\\n' | sort && find . -type f | sort | xargs -r cksum";

/// A box with a tree of checkpoints, by their labels:
///
/// ```text
/// p - q - r - s - t
///      \- u - v
///          \- w
/// ```
///
/// `p` to `r` were made without processes, so that their files are layers; the others, with processes, are snapshots.
/// The current one is `w`. (No id begins like a label.)
struct Grown {
    home: Home,
    states: States,
}

impl Grown {
    fn new() -> Self {
        let home = Home::new();
        home.ok(&["create", "--name", "box"]);
        home.sh("box", "mkdir /data");
        let mut grown = Self {
            home,
            states: States::new(),
        };
        for label in ["p", "q", "r"] {
            grown.step(label, false);
        }
        witness::start(&grown.home, "box");
        grown.step("s", true);
        grown.step("t", true);
        // The branch begins without processes.
        grown.home.ok(&["rollback", "box", "q"]);
        grown.step("u", false);
        witness::start(&grown.home, "box");
        grown.step("v", true);
        grown.home.ok(&["rollback", "box", "u"]);
        grown.step("w", false);
        grown
    }

    /// Tells the witness, if there is one, the label, changes files, and makes a durable checkpoint.
    fn step(&mut self, label: &str, witness: bool) {
        let home = &self.home;
        let said = if witness {
            witness::tell(home, "box", label)
        } else {
            String::new()
        };
        assert!(said.ends_with(label) || !witness, "{said}");
        home.sh(
            "box",
            &format!(
                "cd /data; echo {label} > last; echo {label} >> all; head -c 300000 /dev/urandom > own-{label}; \
                 rm -rf dir; mkdir dir; ln own-{label} dir/link; ln -s {label} dir/symbolic"
            ),
        );
        let files = home.sh("box", FILES);
        home.ok(&["checkpoint", "box", "--label", label, "--wait", "durable"]);
        self.states.insert(label.to_owned(), (said, files));
    }

    fn remove(&mut self, label: &str) {
        self.home.ok(&["rm", "box", "--checkpoint", label]);
        self.states.remove(label);
    }

    /// Goes to every state that is left.
    #[track_caller]
    fn check(&self) {
        let home = &self.home;
        let labels: Vec<_> = log(home).into_iter().map(|(label, _)| label).collect();
        assert_eq!(labels, self.states.keys().cloned().collect::<Vec<_>>());
        for (label, (said, files)) in &self.states {
            home.ok(&["rollback", "box", label]);
            assert_eq!(home.sh("box", FILES), *files, "files of {label}");
            if !said.is_empty() {
                assert_eq!(witness::tell(home, "box", ""), *said, "processes of {label}");
            }
        }
    }
}

/// Labels and those of the parents, in the order of the labels.
fn log(home: &Home) -> Vec<(String, Option<String>)> {
    let log = home.json(&["log", "box"]);
    let nodes = log["checkpoints"].as_array().unwrap();
    let text = |node: &Value| node["label"].as_str().unwrap().to_owned();
    let mut found: Vec<_> = nodes
        .iter()
        .map(|node| {
            let parent = nodes.iter().find(|other| other["id"] == node["parent"]);
            assert_eq!(parent.is_none(), node["parent"].is_null(), "{log}");
            (text(node), parent.map(text))
        })
        .collect();
    found.sort();
    found
}

fn edges(home: &Home) -> String {
    let edges = log(home).into_iter();
    let edges = edges.map(|(label, parent)| format!("{}{label}", parent.unwrap_or_default()));
    edges.collect::<Vec<_>>().join(" ")
}

fn count(path: &Path) -> usize {
    fs::read_dir(path).map_or(0, Iterator::count)
}

/// Contents of open files without a name that are kept.
fn contents(home: &Home) -> usize {
    let sandboxes = fs::read_dir(home.path().join("contents")).unwrap();
    sandboxes.map(|entry| count(&entry.unwrap().path())).sum()
}

#[test]
fn whatever_is_removed_the_others_are_what_they_were() {
    let mut grown = Grown::new();
    assert_eq!(edges(&grown.home), "p pq qr rs st qu uv uw");
    let said = grown.home.refuses(4, &["rm", "box", "--checkpoint", "w"]);
    assert!(said.contains("current") && said.contains("roll back"), "{said}");
    // In the middle of a chain, where branches meet, at an end, at the beginning.
    grown.remove("s");
    assert_eq!(edges(&grown.home), "p pq qr rt qu uv uw");
    grown.check();
    grown.remove("q");
    assert_eq!(edges(&grown.home), "p pr rt pu uv uw");
    grown.check();
    grown.remove("v");
    grown.remove("p");
    assert_eq!(edges(&grown.home), "r rt u uw");
    grown.check();
    assert_eq!(grown.home.json(&["fsck"])["damaged"], Value::Array(vec![]));
    grown.home.kill_daemon();
    assert_eq!(edges(&grown.home), "r rt u uw");
    grown.check();
    grown.home.refuses(3, &["rm", "box", "--checkpoint", "p"]);
    grown.home.ok(&["rm", "--force", "box", "--checkpoint", "p", "r"]);
    grown.states.remove("r");
    assert_eq!(edges(&grown.home), "t u uw");
    grown.check();
    assert_eq!(grown.home.json(&["fsck"])["damaged"], Value::Array(vec![]));
}

#[test]
fn what_only_a_removed_checkpoint_needed_goes() {
    let home = Home::new();
    home.ok(&["create", "--name", "box"]);
    witness::start(&home, "box");
    remembers(&home, "box", "one", "one");
    home.ok(&["checkpoint", "box", "--label", "one", "--wait", "durable"]);
    let segments = home.path().join("segments");
    let (one, held) = (count(&segments), contents(&home));
    let volumes = || home.volumes();
    let pages = || home.json(&["stats", "box"])["page_store_bytes"].as_u64().unwrap();
    let memory = pages();
    let before = volumes();
    assert_eq!((one, held), (1, 1));
    // Another witness, whose pages and open file only this state has.
    home.ok(&["exec", "-d", "box", "python3", "-c", SECOND]);
    home.sh("box", "while ! [ -e /tmp/ready ]; do sleep 0.02; done");
    home.ok(&["checkpoint", "box", "--label", "two", "--wait", "durable"]);
    home.ok(&["rollback", "box", "one"]);
    assert_eq!((count(&segments), contents(&home)), (2, 2));
    assert!(pages() > memory + 3_000_000);
    home.ok(&["rm", "box", "--checkpoint", "two"]);
    assert_eq!((count(&segments), contents(&home)), (1, 1));
    until("the snapshot is gone", || volumes() <= before);
    until("the pages are gone", || pages() < memory + 500_000);
    remembers(&home, "box", "", "one");
}

const SECOND: &str = r"
import os, time
gone = open('/tmp/other', 'w+'); gone.write('second'); gone.flush(); os.unlink('/tmp/other')
memory = os.urandom(3000000)
open('/tmp/ready', 'w')
time.sleep(1000)
";

#[test]
fn a_removal_is_done_or_not_whenever_the_daemon_is_killed() {
    let mut grown = Grown::new();
    let mut random = Random::new();
    for label in ["s", "q", "v", "p", "r"] {
        let mut removal = grown.home.deltabox(&["rm", "box", "--checkpoint", label]);
        let mut removal = removal.stderr(std::process::Stdio::null()).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(random.below(60) as u64));
        grown.home.kill_daemon();
        let told = removal.wait().unwrap().success();
        let there = log(&grown.home).iter().any(|(other, _)| other == label);
        assert!(!(told && there), "{label} was said to be removed and came back");
        if !there {
            grown.states.remove(label);
        }
        grown.check();
        assert_eq!(grown.home.json(&["fsck"])["damaged"], Value::Array(vec![]));
    }
}

#[test]
fn children_do_not_miss_what_was_removed_from_their_source() {
    let mut grown = Grown::new();
    let said = grown.states["t"].0.clone();
    let home = &grown.home;
    home.ok(&["fork", "box", "--from", "t", "--name", "child"]);
    grown.remove("t");
    grown.remove("s");
    let home = &grown.home;
    assert_eq!(witness::tell(home, "child", ""), said);
    home.ok(&["checkpoint", "child", "--wait", "durable"]);
    home.kill_daemon();
    home.ok(&["resume", "child"]);
    assert_eq!(witness::tell(home, "child", "more"), format!("{said} more"));
    grown.check();
}

#[test]
fn a_pinned_checkpoint_stays_until_it_is_unpinned() {
    let home = Home::new();
    home.ok(&["create", "--name", "box"]);
    home.ok(&["checkpoint", "box", "--label", "one", "--pin"]);
    home.ok(&["checkpoint", "box", "--label", "two"]);
    home.ok(&["checkpoint", "box", "--label", "three"]);
    home.ok(&["pin", "box", "two"]);
    home.ok(&["pin", "box", "@"]);
    home.kill_daemon();
    let pinned = || -> Vec<bool> {
        let log = home.json(&["log", "box"]);
        let nodes = log["checkpoints"].as_array().unwrap().iter();
        nodes.map(|node| node["pinned"] == true).collect()
    };
    assert_eq!(pinned(), [true, true, true]);
    assert!(home.ok(&["log", "box"]).contains("pinned  durable"));
    let said = home.refuses(4, &["rm", "box", "--checkpoint", "two"]);
    assert!(
        said.contains("is pinned") && said.contains("deltabox unpin box"),
        "{said}"
    );
    home.ok(&["unpin", "box", "two"]);
    home.kill_daemon();
    assert_eq!(pinned(), [true, false, true]);
    home.ok(&["rm", "box", "--checkpoint", "two"]);
    home.refuses(3, &["pin", "box", "two"]);
    home.ok(&["fork", "box", "--name", "child", "--from", "one"]);
    assert_eq!(home.json(&["log", "child"])["checkpoints"][0]["pinned"], false);
}

/// A checkpoint, after a rollback to the first one, with a file of so many random bytes.
fn branch(home: &Home, bytes: usize) -> String {
    home.ok(&["rollback", "box", "first"]);
    home.sh("box", &format!("head -c {bytes} /dev/urandom > /data"));
    home.ok(&["checkpoint", "box", "--wait", "durable"])
}

fn ids(home: &Home) -> Vec<String> {
    let log = home.json(&["log", "box"]);
    let nodes = log["checkpoints"].as_array().unwrap().iter();
    nodes
        .map(|node| node["id"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn limits_bound_the_history_and_keep_what_must_stay() {
    let home = Home::new();
    home.ok(&["create", "--name", "box", "--keep-last", "3"]);
    let first = home.ok(&["checkpoint", "box", "--label", "first"]);
    let mut made: Vec<String> = (0..6).map(|_| branch(&home, 1000)).collect();
    let kept = |made: &[String]| [std::slice::from_ref(&first), made].concat();
    until("the last three and the labelled one are left", || {
        ids(&home) == kept(&made[3..])
    });
    // Ancestors of the current one stay, unless that is said.
    made.drain(..3);
    made.extend((0..4).map(|_| home.ok(&["checkpoint", "box", "--wait", "durable"])));
    let line = &made[2..];
    until("all on the way to the current one are left", || {
        ids(&home) == kept(line)
    });
    home.kill_daemon();
    assert_eq!(home.ok(&["retention", "box"]), "the last 3");
    home.ok(&["retention", "box", "--keep-last", "2", "--ancestors"]);
    let removed = home.json(&["gc", "box"]);
    assert_eq!(removed["removed"].as_array().unwrap().len(), 3, "{removed}");
    assert_eq!(ids(&home), kept(&line[3..]));
    home.ok(&["resume", "box"]);
    // With processes as well.
    witness::start(&home, "box");
    let mut last = String::new();
    for word in 0..6 {
        last = witness::tell(&home, "box", &word.to_string());
        made.push(home.ok(&["checkpoint", "box", "--wait", "durable"]));
    }
    until("the last two are left", || {
        ids(&home) == kept(&made[made.len() - 2..])
    });
    home.ok(&["rollback", "box", &made[made.len() - 1]]);
    assert_eq!(witness::tell(&home, "box", ""), last);
    // By age nothing but what is exempt is left in the end.
    home.ok(&["retention", "box", "--keep-age", "10ms", "--ancestors"]);
    std::thread::sleep(std::time::Duration::from_millis(20));
    home.ok(&["gc"]);
    assert_eq!(ids(&home), kept(&made[made.len() - 1..]));
    home.ok(&["retention", "box", "--unlimited"]);
    assert_eq!(home.ok(&["retention", "box"]), "unlimited");
    assert_eq!(home.json(&["fsck"])["damaged"], Value::Array(vec![]));
}

fn disk(of: &Value) -> (u64, u64) {
    let bytes = |name: &str| of["disk"][name].as_u64().unwrap();
    (bytes("private_bytes"), bytes("shared_bytes"))
}

/// Checks that the figures of a log add up, and returns their sum.
#[track_caller]
fn total(log: &Value) -> u64 {
    let (private, shared) = disk(log);
    let nodes = log["checkpoints"].as_array().unwrap();
    let of: Vec<_> = nodes.iter().map(disk).collect();
    assert_eq!(
        of.iter().map(|(private, _)| private).sum::<u64>(),
        private,
        "{log}"
    );
    assert!(of.iter().all(|(_, part)| *part <= shared), "{log}");
    private + shared
}

#[test]
fn what_checkpoints_take_adds_up_and_comes_back() {
    const BIG: u64 = 40_000_000;
    let home = Home::new();
    home.ok(&["create", "--name", "box"]);
    home.sh("box", "head -c 3000000 /dev/urandom > /common");
    home.ok(&["checkpoint", "box", "--label", "first", "--wait", "durable"]);
    for processes in [false, true] {
        if processes {
            witness::start(&home, "box");
            witness::tell(&home, "box", "first");
            home.ok(&["rm", "--force", "box", "--checkpoint", "none"]);
            home.ok(&["checkpoint", "box", "--wait", "durable"]);
        }
        let small = home.json(&["log", "box"]);
        let before = total(&small);
        home.sh("box", &format!("head -c {BIG} /dev/urandom > /big"));
        let big = home.ok(&["checkpoint", "box", "--wait", "durable"]);
        home.sh("box", "rm /big");
        home.ok(&["rollback", "box", "~1"]);
        let log = home.json(&["log", "box"]);
        let node = log["checkpoints"]
            .as_array()
            .unwrap()
            .iter()
            .find(|node| node["id"] == *big);
        let (private, shared) = disk(node.unwrap());
        assert!((BIG..BIG + 3_000_000).contains(&private), "{log}");
        assert!(shared >= 3_000_000, "{log}");
        assert_eq!(total(&log), total(&home.json(&["log", "box"])));
        let stats = home.json(&["stats", "box"]);
        assert_eq!(disk(&stats), disk(&log));
        assert!(home.ok(&["log", "box"]).contains("shared"));
        let full = taken(home.path());
        home.ok(&["rm", "box", "--checkpoint", &big]);
        let after = total(&home.json(&["log", "box"]));
        assert_eq!(after, total(&log) - private);
        assert!(after < before + 1_000_000, "{before} before, {after} after");
        until("the space is free again", || {
            home.ok(&["gc"]);
            taken(home.path()) + BIG < full + 4_000_000
        });
    }
}

/// What a directory takes on disk.
fn taken(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => taken(&entry.path()),
        Ok(metadata) => metadata.blocks() * 512,
        Err(_) => 0,
    });
    sizes.sum()
}

#[test]
fn a_limit_of_bytes_holds() {
    let home = Home::new();
    home.ok(&["create", "--name", "box", "--keep-bytes", "5M"]);
    let first = home.ok(&["checkpoint", "box", "--label", "first"]);
    let mut made = Vec::new();
    for _ in 0..8 {
        made.push(branch(&home, 1_500_000));
    }
    until("what is left fits", || ids(&home).len() <= 4);
    let log = home.json(&["log", "box"]);
    assert!(total(&log) <= 5 << 20, "{log}");
    assert_eq!(ids(&home), [&[first], &made[5..]].concat());
}
