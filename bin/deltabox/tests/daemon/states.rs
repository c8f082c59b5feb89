//! Every state is reachable from every other, by every name it has.

use std::fs;

use serde_json::Value;

use crate::support::{Home, Random};

/// Names, types, modes, owners, sizes and contents of what a test made.
const TREE: &str = "cd /w && find . -printf '%p %y %m %U %G %l %T@\\n' | sed 's/ d \\(.*\\) [0-9.]*$/ d \\1/' | sort && \
                    find . -type f | sort | xargs -r cksum";

fn ids(home: &Home) -> Vec<String> {
    let log = home.json(&["log", "box"]);
    let nodes = log["checkpoints"].as_array().unwrap();
    nodes
        .iter()
        .map(|node| node["id"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn every_reference_names_its_checkpoint() {
    let home = Home::new();
    home.ok(&["create", "--name", "box"]);
    // More than there are first digits, so that two ids begin alike.
    for step in 0..17 {
        let label = format!("l{step}");
        home.ok(&[
            "checkpoint",
            "box",
            "--label",
            &label,
            "--token",
            &format!("t{step}"),
        ]);
    }
    let ids = ids(&home);
    let to = |reference: &str| home.json(&["rollback", "box", reference]);
    let last = to("l16");
    assert_eq!(
        (&last["id"], &last["token"]),
        (&Value::from(&*ids[16]), &"t16".into())
    );
    for (reference, at) in [
        ("@", 16),
        ("~2", 14),
        ("@~1", 13),
        ("l5", 5),
        ("l9~3", 6),
        (&ids[3], 3),
    ] {
        assert_eq!(to(reference)["id"], *ids[at], "{reference}");
    }
    let unique = (1..=ids[8].len())
        .map(|length| &ids[8][..length])
        .find(|prefix| ids.iter().filter(|id| id.starts_with(prefix)).count() == 1);
    assert_eq!(to(unique.unwrap())["id"], *ids[8]);
    let alike = ids
        .iter()
        .map(|id| &id[..1])
        .find(|digit| ids.iter().filter(|id| id.starts_with(digit)).count() > 1);
    let said = home.refuses(2, &["rollback", "box", alike.unwrap()]);
    assert!(said.contains("ambiguous"), "{said}");
}

#[test]
fn an_unchanged_sandbox_stores_nothing() {
    let home = Home::new();
    home.ok(&["create", "--name", "box"]);
    home.sh("box", "echo 1 > /x");
    home.ok(&["checkpoint", "box"]);
    for processes in [false, true] {
        if processes {
            home.ok(&["exec", "-d", "box", "--", "/bin/sleep", "1000"]);
            home.ok(&["checkpoint", "box"]);
        }
        home.sh("box", "cat /x > /dev/null");
        let made = home.json(&["checkpoint", "box"]);
        assert_eq!(made["freeze"], "unchanged", "{made}");
        assert_eq!(made["file_bytes"], 0, "{made}");
    }
}

#[test]
fn from_any_node_to_any_node() {
    let home = Home::new();
    let mut random = Random::new();
    home.ok(&["create", "--name", "box"]);
    home.sh("box", "mkdir /w");
    let mut nodes: Vec<(String, String)> = Vec::new();
    for step in 0..12 {
        if !nodes.is_empty() && random.below(2) == 0 {
            let (id, tree) = &nodes[random.below(nodes.len())];
            home.ok(&["rollback", "box", id]);
            assert_eq!(home.sh("box", TREE), *tree);
        }
        let script = match step % 4 {
            0 => format!("mkdir -p /w/d{step}/e; echo {step} > /w/d{step}/e/f; ln /w/d{step}/e/f /w/h{step}"),
            1 => format!("rm -rf /w/d*; echo {step} >> /w/log; chmod 640 /w/log; chown 5:6 /w/log"),
            2 => {
                format!("for d in /w/d*; do [ -d $d ] && mv $d /w/m{step}; done; ln -s {step} /w/s{step}; :")
            }
            _ => format!("truncate -s 100K /w/t; echo {step} | dd of=/w/t conv=notrunc seek=9 2>/dev/null"),
        };
        home.sh("box", &script);
        nodes.push((home.ok(&["checkpoint", "box"]), home.sh("box", TREE)));
    }
    for _ in 0..16 {
        let (id, tree) = &nodes[random.below(nodes.len())];
        home.ok(&["rollback", "box", id]);
        assert_eq!(home.sh("box", TREE), *tree, "files of {id}");
        assert_eq!(home.json(&["diff", "box"])["changes"], Value::Array(vec![]));
    }
}

#[test]
fn states_go_out_and_come_back() {
    let home = Home::new();
    let place = tempfile::tempdir_in("/var/tmp").unwrap();
    let path = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
    small_root(&path("root"));
    home.ok(&["create", "--name", "box", "--rootfs", &path("root")]);
    home.sh("box", "mkdir -p /w/a; echo one > /w/a/f; echo two > /w/g; ln -s a/f /w/l; ln /w/g /w/h; echo base > /w/both");
    home.ok(&["checkpoint", "box", "--label", "one"]);
    home.sh(
        "box",
        "echo changed > /w/g; rm -r /w/a; mkdir /w/new; echo n > /w/new/n; chmod 600 /w/both; rm /base/gone",
    );
    home.ok(&["checkpoint", "box", "--label", "two"]);
    let diff = home.json(&["diff", "box", "one", "two"]);
    let listed = |kind: &str| -> Vec<String> {
        let changes = diff["changes"].as_array().unwrap().iter();
        let mut paths: Vec<_> = changes
            .filter(|change| change["kind"] == kind)
            .map(|change| change["path"].as_str().unwrap().to_owned())
            .collect();
        paths.sort();
        paths
    };
    assert_eq!(listed("added"), ["/w/new", "/w/new/n"]);
    assert!(listed("deleted").contains(&"/base/gone".to_owned()), "{diff}");
    assert!(listed("deleted").iter().any(|path| path == "/w/a"), "{diff}");
    let changed = listed("changed");
    assert!(
        ["/w/both", "/w/g"]
            .iter()
            .all(|path| changed.contains(&(*path).to_owned())),
        "{diff}"
    );

    let trees = ["one", "two"].map(|label| {
        home.ok(&["rollback", "box", label]);
        let tree = home.sh("box", TREE);
        let image = path(&format!("{label}.tar"));
        home.ok(&["export", "box", label, "-o", &image]);
        home.ok(&["create", "--name", label, "--image", &image]);
        assert_eq!(home.sh(label, TREE), tree, "image of {label}");
        tree
    });
    assert_eq!(home.sh("two", "ls /base"), "kept");
    home.ok(&[
        "export",
        "box",
        "two",
        "--format",
        "rootfs",
        "-o",
        &path("rootfs.tar"),
    ]);
    let unpacked = std::process::Command::new("tar")
        .args(["-xf", &path("rootfs.tar"), "-C"])
        .arg(fs::create_dir(path("out")).map(|()| path("out")).unwrap())
        .status();
    assert!(unpacked.unwrap().success());
    home.ok(&["create", "--name", "third", "--rootfs", &path("out")]);
    assert_eq!(home.sh("third", TREE), trees[1]);

    home.ok(&["restore", "box", "--path", "/w/a", "--from", "one"]);
    assert_eq!(home.sh("box", "cat /w/a/f /w/g"), "one\nchanged");
    home.ok(&["cp", "box:/w", &path("copy")]);
    assert_eq!(fs::read_to_string(path("copy/new/n")).unwrap(), "n\n");

    fs::create_dir_all(path("host/a")).unwrap();
    fs::write(path("host/untouched"), "u").unwrap();
    home.ok(&["commit", "box", "two", "--from-path", "/w", "--to", &path("host")]);
    assert!(!fs::exists(path("host/g")).unwrap(), "a preview changes nothing");
    home.ok(&[
        "commit",
        "box",
        "two",
        "--from-path",
        "/w",
        "--to",
        &path("host"),
        "--yes",
    ]);
    assert_eq!(fs::read_to_string(path("host/g")).unwrap(), "changed\n");
    assert_eq!(fs::read_to_string(path("host/untouched")).unwrap(), "u");
}

/// A root with a shell and a few programs of this machine.
fn small_root(root: &str) {
    let script = r#"
        mkdir -p "$0/base" "$0/w"; echo k > "$0/base/kept"; echo g > "$0/base/gone"
        for name in sh ls cat find sort sed xargs cksum mkdir ln rm chmod true; do
            program=$(readlink -f "$(PATH=/usr/bin:/bin command -v $name || PATH=/usr/bin:/bin which $name)")
            [ -f "$program" ] || program=$(readlink -f /usr/bin/$name)
            mkdir -p "$0/bin"; cp "$program" "$0/bin/$name"
            for library in $(ldd "$program" | grep -o '/[^ ]*'); do
                mkdir -p "$0$(dirname $library)"; cp -L "$library" "$0$library"
            done
        done"#;
    let made = std::process::Command::new("/bin/bash")
        .args(["-euc", script, root])
        .env("PATH", "/usr/bin:/bin")
        .status();
    assert!(made.unwrap().success());
}
