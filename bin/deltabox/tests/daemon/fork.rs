//! Sandboxes made from the state of another.

use crate::support::Home;
use crate::witness::{self, remembers};

#[test]
fn children_have_files_processes_and_memory_of_their_own() {
    let home = Home::new();
    home.ok(&["create", "--name", "source"]);
    witness::start(&home, "source");
    remembers(&home, "source", "first", "first");
    let point = home.ok(&["checkpoint", "source"]);
    remembers(&home, "source", "second", "first second");

    let names = home.ok(&["fork", "source", "-n", "3", "--name", "live"]);
    assert_eq!(names.lines().collect::<Vec<_>>(), ["live-1", "live-2", "live-3"]);
    remembers(&home, "live-1", "mine", "first second mine");
    remembers(&home, "live-2", "", "first second");
    assert_eq!(home.ok(&["exec", "live-2", "hostname"]), "live-2");
    let id = |name: &str| home.ok(&["exec", name, "sh", "-c", "echo $DELTABOX_SANDBOX_ID"]);
    assert_ne!(id("live-1"), id("live-2"));

    // From a checkpoint, from a child, and after the source has gone; a child has a history of its own.
    assert_eq!(
        home.ok(&["fork", "source", "--from", &point, "--name", "old"]),
        "old"
    );
    remembers(&home, "source", "", "first second");
    home.ok(&["rm", "--force", "source"]);
    remembers(&home, "old", "", "first");
    assert_eq!(home.ok(&["fork", "live-1", "--name", "grandchild"]), "grandchild");
    remembers(&home, "grandchild", "deep", "first second mine deep");
    home.ok(&["rollback", "grandchild", "@"]);
    remembers(&home, "grandchild", "", "first second mine");
    remembers(&home, "live-1", "", "first second mine");
}

#[test]
fn what_keeps_one_child_from_being_made_is_told_in_its_place() {
    let home = Home::new();
    home.ok(&["create", "--name", "box"]);
    home.ok(&["create", "--name", "kid-2"]);
    let output = home.output(&["fork", "box", "-n", "3", "--name", "kid", "--json"]);
    let children: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let told: Vec<(Option<&str>, bool)> = children
        .as_array()
        .unwrap()
        .iter()
        .map(|child| (child["name"].as_str(), child["error"]["kind"] == "conflict"))
        .collect();
    assert_eq!(
        told,
        [
            (Some("kid-1"), false),
            (Some("kid-2"), true),
            (Some("kid-3"), false)
        ]
    );
    assert_eq!(output.status.code(), Some(4));
    for (arguments, code) in [
        (["fork", "box", "-n", "0"], 2),
        (["fork", "box", "--from", "nothing"], 3),
        (["fork", "nobody", "-n", "1"], 3),
        (["fork", "box", "--name", "Bad Name"], 2),
    ] {
        assert_eq!(home.fails(&arguments).0, code, "{arguments:?}");
    }
    // Nothing is left of those that were not made.
    let names: serde_json::Value = serde_json::from_str(&home.ok(&["ls", "--json"])).unwrap();
    assert_eq!(names.as_array().unwrap().len(), 4);
}
