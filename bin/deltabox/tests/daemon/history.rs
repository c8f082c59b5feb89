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
/// a - b - c - d - e
///      \- f - g
///          \- h
/// ```
///
/// `a` to `c` were made without processes, so that their files are layers; the others, with processes, are snapshots.
/// The current one is `h`.
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
        for label in ["a", "b", "c"] {
            grown.step(label, false);
        }
        witness::start(&grown.home, "box");
        grown.step("d", true);
        grown.step("e", true);
        // The branch begins without processes.
        grown.home.ok(&["rollback", "box", "b"]);
        grown.step("f", false);
        witness::start(&grown.home, "box");
        grown.step("g", true);
        grown.home.ok(&["rollback", "box", "f"]);
        grown.step("h", false);
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
    assert_eq!(edges(&grown.home), "a ab bc cd de bf fg fh");
    let said = grown.home.refuses(4, &["rm", "box", "--checkpoint", "h"]);
    assert!(said.contains("current") && said.contains("roll back"), "{said}");
    // In the middle of a chain, where branches meet, at an end, at the beginning.
    grown.remove("d");
    assert_eq!(edges(&grown.home), "a ab bc ce bf fg fh");
    grown.check();
    grown.remove("b");
    assert_eq!(edges(&grown.home), "a ac ce af fg fh");
    grown.check();
    grown.remove("g");
    grown.remove("a");
    assert_eq!(edges(&grown.home), "c ce f fh");
    grown.check();
    assert_eq!(grown.home.json(&["fsck"])["damaged"], Value::Array(vec![]));
    grown.home.kill_daemon();
    assert_eq!(edges(&grown.home), "c ce f fh");
    grown.check();
    grown.home.refuses(3, &["rm", "box", "--checkpoint", "a"]);
    grown.home.ok(&["rm", "--force", "box", "--checkpoint", "a", "c"]);
    grown.states.remove("c");
    assert_eq!(edges(&grown.home), "e f fh");
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
    let before = volumes();
    assert_eq!((one, held), (1, 1));
    // Another witness, whose pages and open file only this state has.
    home.ok(&["exec", "-d", "box", "python3", "-c", SECOND]);
    home.sh("box", "while ! [ -e /tmp/ready ]; do sleep 0.02; done");
    home.ok(&["checkpoint", "box", "--label", "two", "--wait", "durable"]);
    home.ok(&["rollback", "box", "one"]);
    assert_eq!((count(&segments), contents(&home)), (2, 2));
    home.ok(&["rm", "box", "--checkpoint", "two"]);
    assert_eq!((count(&segments), contents(&home)), (1, 1));
    until("the snapshot is gone", || volumes() <= before);
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
    for label in ["d", "b", "g", "a", "c"] {
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
    let said = grown.states["e"].0.clone();
    let home = &grown.home;
    home.ok(&["fork", "box", "--from", "e", "--name", "child"]);
    grown.remove("e");
    grown.remove("d");
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
