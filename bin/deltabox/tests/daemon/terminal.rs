//! Commands on a terminal.

use std::fs;
use std::io::{Read, Write};
use std::process::Stdio;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use crate::support::{Home, PATIENCE};

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
