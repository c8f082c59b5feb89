//! The command line as a process, against a server that answers what a test needs, also what a daemon rarely does.

mod fake;

use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Output, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use fake::{Fake, Reply, Request};

fn deltabox(home: &std::path::Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_deltabox"));
    command.env("DELTABOX_HOME", home).stdin(Stdio::null());
    command
}

fn run(home: &std::path::Path, arguments: &[&str]) -> Output {
    deltabox(home).args(arguments).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn event(name: &str, data: &str) -> String {
    format!("{{\"event\":\"{name}\",\"data\":\"{}\"}}\n", BASE64.encode(data))
}

const STARTED: &str = "{\"event\":\"started\",\"id\":\"e1\",\"pid\":7}\n";
const EXITED: &str = "{\"event\":\"exited\",\"code\":9,\"signal\":null,\"timed_out\":false}\n";

#[test]
fn exec_keeps_streams_apart_and_ends_with_the_commands_code() {
    let fake = Fake::start(|request: &Request| {
        assert_eq!(
            (request.method.as_str(), request.path.as_str()),
            ("POST", "/v1/sandboxes/a%2Fb/exec")
        );
        let body = String::from_utf8(request.body.clone()).unwrap();
        assert!(body.contains(r#""argv":["ls","-l","--","x"]"#), "{body}");
        let all = [
            STARTED,
            &event("stdout", "out\n"),
            &event("stderr", "err\n"),
            EXITED,
        ]
        .concat();
        // In pieces that have nothing to do with lines.
        let pieces: Vec<Vec<u8>> = all.as_bytes().chunks(7).map(<[u8]>::to_vec).collect();
        Reply::stream(pieces)
    });
    let output = run(fake.home(), &["exec", "a/b", "ls", "-l", "--", "x"]);
    assert_eq!(
        (stdout(&output).as_str(), stderr(&output).as_str()),
        ("out\n", "err\n")
    );
    assert_eq!(output.status.code(), Some(9));
}

#[test]
fn exec_has_codes_of_its_own_for_every_other_end() {
    let ends = [
        (
            r#"{"event":"exited","code":null,"signal":15,"timed_out":false}"#,
            143,
        ),
        (
            r#"{"event":"exited","code":null,"signal":9,"timed_out":true}"#,
            124,
        ),
        (r#"{"event":"discarded","checkpoint":"c1"}"#, 123),
        (r#"{"event":"lost","message":"removed"}"#, 125),
        ("", 125),
        ("not json", 125),
    ];
    for (line, code) in ends {
        let fake = Fake::start(move |_: &Request| Reply::stream([format!("{STARTED}{line}\n").into_bytes()]));
        assert_eq!(
            run(fake.home(), &["exec", "a", "true"]).status.code(),
            Some(code),
            "{line}"
        );
    }
}

#[test]
fn exec_of_what_cannot_be_started_ends_with_the_code_the_daemon_has_for_it() {
    let fake = Fake::start(|_: &Request| {
        Reply::error(404, "not_found", "no command 'x'").header("x-deltabox-exit-code", "127")
    });
    let output = run(fake.home(), &["exec", "a", "x"]);
    assert_eq!(
        (output.status.code(), stderr(&output).as_str()),
        (Some(127), "error: no command 'x'\n")
    );
    let fake = Fake::start(|_: &Request| Reply::error(404, "not_found", "no sandbox 'a'"));
    assert_eq!(run(fake.home(), &["exec", "a", "x"]).status.code(), Some(125));
    assert_eq!(run(fake.home(), &["exec", "a"]).status.code(), Some(125));
}

#[test]
fn exec_forwards_standard_input_and_its_end() {
    let fake = Fake::start(|request: &Request| match request.path.as_str() {
        "/v1/sandboxes/a/execs/e1/stdin" => {
            assert_eq!(request.body.len(), 300_000);
            Reply::signal("input came").status(204)
        }
        _ => Reply::stream([STARTED.into()]).after("input came", EXITED),
    });
    let mut child = deltabox(fake.home())
        .args(["exec", "-i", "a", "cat"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(&vec![b'x'; 300_000])
        .unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(9));
}

#[test]
fn exec_forwards_signals_instead_of_dying() {
    let fake = Fake::start(|request: &Request| match request.path.as_str() {
        "/v1/sandboxes/a/execs/e1/signal" => {
            assert_eq!(request.body, br#"{"signal":15}"#);
            Reply::signal("signal came").status(204)
        }
        _ => {
            Reply::stream([[STARTED, &event("stdout", "ready")].concat().into()]).after("signal came", EXITED)
        }
    });
    let mut child = deltabox(fake.home())
        .args(["exec", "a", "sleep"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = [0; 5];
    child.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(9));
}

#[test]
fn a_reader_that_goes_away_ends_the_command_line_quietly() {
    let fake = Fake::start(|request: &Request| match request.path.as_str() {
        "/v1/sandboxes/a/exec" => {
            let piece = event("stdout", &"x".repeat(30_000));
            Reply::stream(
                std::iter::once(STARTED.into()).chain(std::iter::repeat_n(piece.into_bytes(), 1000)),
            )
        }
        _ => Reply::json("[]"),
    });
    for arguments in [&["exec", "a", "yes"][..], &["ls", "--json"]] {
        let mut child = deltabox(fake.home());
        let mut child = child
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(
            (output.status.code(), stderr(&output).as_str()),
            (Some(141), ""),
            "{arguments:?}"
        );
    }
}

#[test]
fn a_daemon_that_breaks_off_is_told_and_nothing_partial_is_kept() {
    let fake = Fake::start(|_: &Request| Reply::stream([b"part".to_vec()]).broken());
    let file = fake.home().join("export.tar");
    let output = run(fake.home(), &["export", "a", "c", "-o", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(8));
    assert!(
        stderr(&output).starts_with("error: the connection to the daemon broke"),
        "{}",
        stderr(&output)
    );
    let left: Vec<_> = std::fs::read_dir(fake.home())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["daemon.sock"]);
}

#[test]
fn names_are_escaped_and_errors_keep_kind_and_hint() {
    let fake = Fake::start(|request: &Request| {
        assert_eq!(
            request.path,
            "/v1/sandboxes/..%2Fx%3F/diff?text=true&from=~2&path=%2Fa%20b"
        );
        Reply::json_status(
            404,
            r#"{"kind":"not_found","message":"no such thing","hint":"look"}"#,
        )
    });
    let output = run(fake.home(), &["diff", "../x?", "~2", "--text", "--path", "/a b"]);
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(3), ""));
    assert_eq!(stderr(&output), "error: no such thing\nhint: look\n");
}

#[test]
fn a_state_directory_that_cannot_be_made_is_one_clear_line() {
    let output = run(std::path::Path::new("/proc/nothing/here"), &["ls"]);
    assert_eq!(output.status.code(), Some(8));
    let text = stderr(&output);
    assert!(
        text.starts_with("error: cannot create the state directory '/proc/nothing/here': "),
        "{text}"
    );
    assert_eq!(text.lines().count(), 2, "{text}");
    let output = run(
        std::path::Path::new(&format!("/tmp/{}", "x".repeat(120))),
        &["ls"],
    );
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn without_privileges_it_says_what_to_do() {
    if !rustix::process::geteuid().is_root() {
        panic!("the tests of this project run as root");
    }
    // The build directory need not be readable for others.
    let place = tempfile::tempdir().unwrap();
    std::fs::set_permissions(place.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let copy = place.path().join("deltabox");
    std::fs::copy(env!("CARGO_BIN_EXE_deltabox"), &copy).unwrap();
    std::fs::set_permissions(&copy, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let output = Command::new(&copy)
        .arg("ls")
        .env_remove("DELTABOX_HOME")
        .uid(65534)
        .gid(65534)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(6));
    assert!(
        stderr(&output).starts_with("error: deltabox needs root"),
        "{}",
        stderr(&output)
    );
    let output = Command::new(&copy)
        .arg("ls")
        .env("DELTABOX_HOME", "/tmp/x")
        .uid(65534)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(6));
    assert!(output.status.signal().is_none());
}

#[test]
fn stop_without_a_daemon_starts_none() {
    let home = tempfile::tempdir().unwrap();
    assert_eq!(run(home.path(), &["stop"]).status.code(), Some(0));
    assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0);
}
