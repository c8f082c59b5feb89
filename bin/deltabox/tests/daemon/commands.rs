//! Commands with a real daemon, which the first one starts.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{PidfdFlags, pidfd_open};

use crate::support::{Home, ended};

#[test]
fn commands_that_come_at_once_start_one_daemon() {
    let home = Home::new();
    let commands: Vec<_> = (0..8)
        .map(|_| {
            home.deltabox(&["ls", "--json"])
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    for command in commands {
        let output = command.wait_with_output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert_eq!(output.stdout, b"[]\n");
    }
    // A second one would have failed for the lock and said so.
    let log = fs::read_to_string(home.path().join("daemon.log")).unwrap();
    assert!(!log.contains("error"), "{log}");
}

#[test]
fn a_killed_daemon_is_started_again_and_stop_leaves_nothing_running() {
    let home = Home::new();
    home.ok(&["ls"]);
    let first = home.daemon().unwrap();
    home.kill_daemon();
    home.ok(&["ls"]);
    let second = home.daemon().unwrap();
    assert_ne!(first, second);
    let process = pidfd_open(second, PidfdFlags::empty()).unwrap();
    home.ok(&["stop"]);
    assert!(
        ended(&process, Duration::ZERO),
        "stop returned before the daemon had ended"
    );
    assert!(!home.path().join("daemon.sock").exists());
    home.ok(&["stop"]);
}

#[test]
fn the_daemon_holds_none_of_its_starters_descriptors() {
    let home = Home::new();
    // `output` returns when the last holder of the pipe has closed it.
    let script = "exec 9>&1; \"$0\" ls >/dev/null 2>&1; echo listed";
    let output = Command::new("/bin/sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_deltabox")])
        .env("DELTABOX_HOME", home.path())
        .output()
        .unwrap();
    assert_eq!(output.stdout, b"listed\n");
    assert!(home.daemon().is_some());
}

#[test]
fn a_state_goes_back_and_forth() {
    let home = Home::new();
    assert_eq!(
        home.ok(&["create", "--name", "box", "--env", "GREETING=hello"]),
        "box"
    );
    assert_eq!(
        home.ok(&["exec", "box", "--", "sh", "-c", "echo $GREETING | tee /note"]),
        "hello"
    );
    let first = home.ok(&["checkpoint", "box", "--label", "first"]);
    home.ok(&["exec", "box", "--", "sh", "-c", "echo changed > /note"]);
    let second = home.ok(&["checkpoint", "box"]);
    assert_eq!(home.ok(&["rollback", "box", "first"]), format!("{first} (first)"));
    assert_eq!(home.ok(&["exec", "box", "cat", "/note"]), "hello");
    let log = home.ok(&["log", "box"]);
    let lines: Vec<&str> = log.lines().collect();
    assert!(
        lines[0].contains(&first) && lines[0].ends_with("<- current"),
        "{log}"
    );
    assert!(lines[1].contains(&second), "{log}");
    assert_eq!(home.ok(&["rollback", "box", &second[..8]]), second);
    assert_eq!(home.ok(&["exec", "box", "cat", "/note"]), "changed");
    home.ok(&["rm", "box"]);
    assert_eq!(home.ok(&["ls", "--json"]), "[]");
}

#[test]
fn the_last_words_of_a_quick_command_are_never_lost() {
    let home = Home::new();
    home.ok(&["create", "--name", "box"]);
    for round in 0..300 {
        let output = home.output(&["exec", "box", "--", "/bin/sh", "-c", "echo out; echo err >&2"]);
        assert_eq!(
            (output.stdout.as_slice(), output.stderr.as_slice()),
            (&b"out\n"[..], &b"err\n"[..]),
            "{round}"
        );
    }
}

#[test]
fn wrong_names_are_one_clear_line() {
    let home = Home::new();
    home.ok(&["create", "--name", "box"]);
    let wrong: [(&[&str], i32); 7] = [
        (&["inspect", "nobody"], 3),
        (&["rollback", "box", "nothing"], 3),
        (&["rollback", "box", "~3"], 3),
        (&["exec", "nobody", "true"], 125),
        (&["exec", "box", "/no/such/program"], 127),
        (&["exec", "box", "/etc/passwd"], 126),
        (&["create", "--name", "box"], 4),
    ];
    for (arguments, code) in wrong {
        home.refuses(code, arguments);
    }
    assert_eq!(home.fails(&["create", "--name", "Not A Name"]).0, 2);
    assert_eq!(home.fails(&["create", "--rootfs", "/no/such/root"]).0, 3);
}

#[test]
fn files_are_copied_in_and_out_by_the_rules_of_cp() {
    let home = Home::new();
    home.ok(&["create", "--name", "box"]);
    let place = tempfile::tempdir().unwrap();
    let local = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
    fs::create_dir_all(place.path().join("tree/sub")).unwrap();
    fs::write(place.path().join("tree/sub/file"), vec![7; 1 << 20]).unwrap();
    std::os::unix::fs::symlink("sub/file", place.path().join("tree/link")).unwrap();
    home.ok(&["cp", &local("tree"), "box:/new"]);
    home.ok(&["cp", &local("tree"), "box:/tmp"]);
    home.ok(&["cp", &local("tree/sub/file"), "box:/tmp/single"]);
    let compare =
        "cmp /new/sub/file /tmp/tree/link && cmp /tmp/single /new/link && stat -c %U /new /tmp/single";
    assert_eq!(home.ok(&["exec", "box", "--", "sh", "-c", compare]), "root\nroot");
    home.ok(&["cp", "box:/new", &local("back")]);
    assert_eq!(
        fs::read(place.path().join("back/sub/file")).unwrap(),
        vec![7; 1 << 20]
    );
    home.ok(&["cp", "box:/new/.", place.path().to_str().unwrap()]);
    assert_eq!(
        fs::read_link(place.path().join("link")).unwrap(),
        Path::new("sub/file")
    );
    assert_eq!(home.fails(&["cp", "box:/nothing", &local("x")]).0, 3);
    assert_eq!(
        home.fails(&["cp", &local("tree"), "box:/no/such/directory/x"]).0,
        3
    );
}
