//! The command line with a real daemon, which it starts itself.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

/// Long enough for a busy machine; nothing here takes a second by itself.
const PATIENCE: Duration = Duration::from_secs(30);

/// A state directory whose daemon ends with it.
struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        Self(
            tempfile::Builder::new()
                .prefix("deltabox-test-")
                .tempdir_in("/var/tmp")
                .unwrap(),
        )
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn deltabox(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_deltabox"));
        command
            .env("DELTABOX_HOME", self.path())
            .args(arguments)
            .stdin(Stdio::null());
        command
    }

    fn output(&self, arguments: &[&str]) -> Output {
        self.deltabox(arguments).output().unwrap()
    }

    /// Standard output of a command that must succeed, without the last newline.
    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    fn fails(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.output(arguments);
        (
            output.status.code().unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        )
    }

    fn daemon_pid(&self) -> Option<Pid> {
        let text = fs::read_to_string(self.path().join("daemon.pid")).ok()?;
        Pid::from_raw(text.trim().parse().ok()?)
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let daemon = self
            .daemon_pid()
            .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        let stopped = self.output(&["stop"]).status.success();
        if let Some(daemon) = daemon.filter(|_| !stopped) {
            let _ = pidfd_send_signal(&daemon, Signal::KILL);
            wait_for_end(&daemon);
        }
    }
}

fn wait_for_end(process: &OwnedFd) {
    let timeout = Timespec {
        tv_sec: 30,
        tv_nsec: 0,
    };
    let _ = poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&timeout));
}

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
    let first = home.daemon_pid().unwrap();
    kill_process(first, Signal::KILL).unwrap();
    home.ok(&["ls"]);
    let second = home.daemon_pid().unwrap();
    assert_ne!(first, second);
    let process = pidfd_open(second, PidfdFlags::empty()).unwrap();
    home.ok(&["stop"]);
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let ended = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&now)).unwrap();
    assert_eq!(ended, 1, "stop returned before the daemon had ended");
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
    assert!(home.daemon_pid().is_some());
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

/// A server with a thread and an open file, which counts, and answers by a FIFO.
const COUNTER: &str = r"
import os, threading, time
log = open('/tmp/log', 'a')
memory = {'note': 'none', 'ticks': 0}
def tick():
    while True:
        memory['ticks'] += 1
        time.sleep(0.001)
threading.Thread(target=tick, daemon=True).start()
os.mkfifo('/tmp/in'); os.mkfifo('/tmp/out')
while True:
    word = open('/tmp/in').read().strip()
    if word:
        memory['note'] = word
        print(word, file=log, flush=True)
    before = memory['ticks']
    time.sleep(0.05)
    alive = memory['ticks'] > before
    with open('/tmp/out', 'w') as out:
        print(os.getpid(), memory['note'], open('/tmp/log').read().split(), alive, file=out)
";

#[test]
fn children_have_files_processes_and_memory_of_their_own() {
    let home = Home::new();
    home.ok(&["create", "--name", "source"]);
    home.ok(&["exec", "-d", "source", "python3", "-c", COUNTER]);
    let ask = |name: &str, word: &str| {
        let script =
            format!("while ! [ -p /tmp/out ]; do sleep 0.02; done; echo {word} > /tmp/in; cat /tmp/out");
        home.ok(&["exec", name, "sh", "-c", &script])
    };
    assert_eq!(ask("source", "first"), "2 first ['first'] True");
    let point = home.ok(&["checkpoint", "source"]);
    assert_eq!(ask("source", "second"), "2 second ['first', 'second'] True");

    let names = home.ok(&["fork", "source", "-n", "3", "--name", "live"]);
    assert_eq!(names.lines().collect::<Vec<_>>(), ["live-1", "live-2", "live-3"]);
    assert_eq!(ask("live-1", "mine"), "2 mine ['first', 'second', 'mine'] True");
    assert_eq!(ask("live-2", ""), "2 second ['first', 'second'] True");
    assert_eq!(home.ok(&["exec", "live-2", "hostname"]), "live-2");
    let id = |name: &str| home.ok(&["exec", name, "sh", "-c", "echo $DELTABOX_SANDBOX_ID"]);
    assert_ne!(id("live-1"), id("live-2"));

    // From a checkpoint, from a child, and after the source has gone; a child has a history of its own.
    assert_eq!(
        home.ok(&["fork", "source", "--from", &point, "--name", "old"]),
        "old"
    );
    assert_eq!(ask("source", ""), "2 second ['first', 'second'] True");
    home.ok(&["rm", "--force", "source"]);
    assert_eq!(ask("old", ""), "2 first ['first'] True");
    assert_eq!(home.ok(&["fork", "live-1", "--name", "grandchild"]), "grandchild");
    assert_eq!(
        ask("grandchild", "deep"),
        "2 deep ['first', 'second', 'mine', 'deep'] True"
    );
    home.ok(&["rollback", "grandchild", "@"]);
    assert_eq!(ask("grandchild", ""), "2 mine ['first', 'second', 'mine'] True");
    assert_eq!(ask("live-1", ""), "2 mine ['first', 'second', 'mine'] True");
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
        let (got, said) = home.fails(arguments);
        assert_eq!(got, code, "{arguments:?}: {said}");
        assert!(
            said.starts_with("error: ") && said.lines().count() <= 2,
            "{arguments:?}: {said}"
        );
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

/// Reads from a terminal until `wanted` appears.
fn expect(terminal: &mut fs::File, wanted: &str) -> String {
    let deadline = Instant::now() + PATIENCE;
    let mut seen = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&seen).into_owned();
        if text.contains(wanted) {
            return text;
        }
        let timeout = Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        };
        let ready = poll(&mut [PollFd::new(&*terminal, PollFlags::IN)], Some(&timeout)).unwrap();
        let mut buffer = [0; 4096];
        if ready > 0 {
            let length = terminal.read(&mut buffer).unwrap_or(0);
            seen.extend_from_slice(&buffer[..length]);
        }
        assert!(Instant::now() < deadline, "waited for {wanted:?}, got {text:?}");
    }
}

fn set_size(terminal: &fs::File, rows: u16, cols: u16) {
    let size = Winsize {
        ws_row: rows,
        ws_col: cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(terminal, size).unwrap();
}

#[test]
fn a_terminal_inside_follows_the_one_outside() {
    let home = Home::new();
    home.ok(&["create", "--name", "box"]);
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let name = ptsname(&terminal, Vec::new()).unwrap();
    let mut terminal = fs::File::from(terminal);
    let side = fs::File::options()
        .read(true)
        .write(true)
        .open(name.to_str().unwrap())
        .unwrap();
    set_size(&terminal, 31, 101);
    let stream = || Stdio::from(side.try_clone().unwrap());
    let mut command = home.deltabox(&["exec", "-it", "box", "--", "/bin/sh"]);
    let mut shell = command
        .env("TERM", "test-terminal")
        .stdin(stream())
        .stdout(stream())
        .stderr(stream())
        .spawn()
        .unwrap();
    expect(&mut terminal, "# ");
    assert!(
        !tcgetattr(&side).unwrap().local_modes.contains(LocalModes::ICANON),
        "raw mode"
    );
    terminal
        .write_all(b"stty size; echo $TERM; echo o''ne\r")
        .unwrap();
    assert!(expect(&mut terminal, "one\r\n").contains("31 101\r\ntest-terminal\r\n"));
    set_size(&terminal, 40, 120);
    kill_process(Pid::from_child(&shell), Signal::WINCH).unwrap();
    terminal
        .write_all(b"while [ \"$(stty size)\" != '40 120' ]; do :; done; echo t''wo\r")
        .unwrap();
    expect(&mut terminal, "two\r\n");
    // The character goes inside, where it means an interrupt, and does not end us.
    // Said by the one that is to be interrupted: the shell itself would ignore it.
    terminal
        .write_all(b"sh -c 'echo be\"\"gun; exec sleep 1000'\r")
        .unwrap();
    expect(&mut terminal, "begun\r\n");
    terminal.write_all(b"\x03").unwrap();
    expect(&mut terminal, "# ");
    terminal.write_all(b"exit 5\r").unwrap();
    assert_eq!(shell.wait().unwrap().code(), Some(5));
    assert!(
        tcgetattr(&side).unwrap().local_modes.contains(LocalModes::ICANON),
        "as it was before"
    );
}

#[test]
fn the_end_of_our_input_is_typed_on_a_terminal_inside() {
    let home = Home::new();
    home.ok(&["create", "--name", "box"]);
    for (input, lines) in [("a\nb\n", "2 "), ("a\nb", "1 ")] {
        let mut count = home.deltabox(&[
            "exec",
            "-it",
            "box",
            "--",
            "/bin/sh",
            "-c",
            "stty -echo; echo r; wc",
        ]);
        let mut count = count
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = count.stdin.take().unwrap();
        let mut ready = [0; 1];
        count.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
        stdin.write_all(input.as_bytes()).unwrap();
        drop(stdin);
        let output = count.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.trim_start().starts_with(lines), "{text:?}");
    }
}

#[test]
fn a_shell_is_found() {
    let home = Home::new();
    home.ok(&["create", "--name", "box"]);
    let mut shell = home
        .deltabox(&["shell", "box"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    shell
        .stdin
        .take()
        .unwrap()
        .write_all(b"echo \"<$SHELL>\"; exit 6\n")
        .unwrap();
    let output = shell.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("</bin/bash>") || text.contains("</bin/sh>"),
        "{text}"
    );
    assert_eq!(output.status.code(), Some(6));
}
