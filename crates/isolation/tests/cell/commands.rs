//! Commands: output, ends, terminals, identities, errors.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use deltabox_isolation::{Error, ExitStatus, KillTarget, SkeletonSpec, Stdio, users};
use rustix::process::{Signal, pidfd_send_signal};

use crate::support::{World, eventually, piped, run, run_spec, sh, spec, start, wait_for};

#[test]
fn output_and_exit_codes_come_back() {
    let world = World::new();
    let cell = world.cell();
    let output = run(&cell, &["/bin/sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!(output.text, "out\nerr\n");
    assert_eq!(output.status, ExitStatus::Code(7));
    assert_eq!(run(&cell, &["true"]).status, ExitStatus::Code(0));
    cell.destroy().unwrap();
}

#[test]
fn signals_end_commands_and_are_told_from_codes() {
    let world = World::new();
    let cell = world.cell();
    let (sleeper, _) = start(&cell, &["sleep", "100"]);
    cell.signal(KillTarget::Process(sleeper.pid_inside), libc::SIGTERM)
        .unwrap();
    assert_eq!(
        wait_for(&cell, &sleeper),
        ExitStatus::Signal {
            signal: libc::SIGTERM,
            core: false
        }
    );
    let (group, _) = start(&cell, &["sh", "-c", "sleep 100 & sleep 100"]);
    cell.signal(KillTarget::Group(group.pid_inside), libc::SIGKILL)
        .unwrap();
    assert_eq!(
        wait_for(&cell, &group),
        ExitStatus::Signal {
            signal: libc::SIGKILL,
            core: false
        }
    );
    assert!(cell.signal(KillTarget::Process(1), libc::SIGKILL).is_err());
    assert!(cell.signal(KillTarget::Process(0), libc::SIGKILL).is_err());
    assert!(cell.signal(KillTarget::Group(1), libc::SIGKILL).is_err());
    cell.ping().unwrap();
}

#[test]
fn input_reaches_a_command() {
    let world = World::new();
    let cell = world.cell();
    let (input, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let (Stdio::Fds([_, out, err]), mut output) = piped() else {
        unreachable!()
    };
    let started = cell.exec(spec(&["cat"], Stdio::Fds([input, out, err]))).unwrap();
    let mut write = File::from(write);
    write.write_all(b"through").unwrap();
    drop(write);
    let mut text = String::new();
    output.read_to_string(&mut text).unwrap();
    assert_eq!(text, "through");
    assert_eq!(wait_for(&cell, &started), ExitStatus::Code(0));
}

#[test]
fn a_pipe_can_be_opened_again_by_name_by_any_user() {
    let world = World::new();
    let cell = world.cell();
    for uid in [0, 1000] {
        let output = run_spec(
            &cell,
            |spec| (spec.uid, spec.gid) = (uid, uid),
            &["sh", "-c", "echo again > /dev/stdout"],
        );
        assert_eq!(output.text, "again\n");
    }
}

#[test]
fn what_cannot_be_started_is_named() {
    let world = World::new();
    let cell = world.cell();
    let fails = |change: &dyn Fn(&mut deltabox_isolation::ExecSpec), argv: &[&str]| {
        let mut spec = spec(argv, piped().0);
        change(&mut spec);
        cell.exec(spec).unwrap_err()
    };
    let missing = fails(&|_| {}, &["no-such-program-here"]);
    assert!(matches!(&missing, Error::ProgramNotFound { program } if program == "no-such-program-here"));
    assert!(missing.to_string().contains("no-such-program-here"));
    assert!(matches!(
        fails(&|_| {}, &["/no/such"]),
        Error::ProgramNotFound { .. }
    ));
    assert!(
        matches!(fails(&|_| {}, &["/etc/passwd"]), Error::ProgramNotRunnable { program, .. } if program == "/etc/passwd")
    );
    assert!(matches!(
        fails(&|_| {}, &["/etc"]),
        Error::ProgramNotRunnable { .. }
    ));
    let cwd = fails(&|spec| spec.cwd = "/no/such/dir".into(), &["true"]);
    assert!(matches!(&cwd, Error::WorkingDirectory { cwd, .. } if cwd == "/no/such/dir"));
    // A user that may not enter the directory.
    let private = fails(
        &|spec| (spec.cwd, spec.uid, spec.gid) = ("/root".into(), 1000, 1000),
        &["true"],
    );
    assert!(matches!(private, Error::WorkingDirectory { .. }));
    assert!(matches!(
        fails(&|spec| spec.uid = 70_000, &["true"]),
        Error::Invalid(_)
    ));
    assert!(matches!(fails(&|spec| spec.argv.clear(), &[]), Error::Invalid(_)));
    // None of that left a process, and a start that failed is no news.
    eventually("the children are gone", || {
        cell.cgroup().procs().unwrap().is_empty()
    });
    assert_eq!(cell.poll_events().unwrap(), vec![]);
}

#[test]
fn a_command_finds_a_clean_table_of_everything() {
    let world = World::new();
    let cell = world.cell();
    // Descriptor 3 is the listing's own.
    assert_eq!(sh(&cell, "ls /proc/self/fd | tr '\\n' ' '"), "0 1 2 3");
    let signals = sh(&cell, "grep -E '^Sig(Blk|Ign|Pnd)' /proc/self/status");
    assert!(
        signals.lines().all(|line| line.ends_with("0000000000000000")),
        "{signals}"
    );
    let ids = "cut -d' ' -f1,4,5,6 /proc/self/stat";
    let shown = run(
        &cell,
        &["sh", "-c", &format!("{ids}; ps -o pid=,ppid=,sid=,pgid= -p $$")],
    )
    .text;
    let shell: Vec<i32> = shown
        .lines()
        .last()
        .unwrap()
        .split_whitespace()
        .map(|n| n.parse().unwrap())
        .collect();
    assert_eq!(
        (shell[1], shell[2], shell[3]),
        (1, shell[0], shell[0]),
        "child of init, own session and group"
    );
    assert_eq!(
        run_spec(&cell, |s| s.umask = 0o077, &["sh", "-c", "umask"]).text,
        "0077\n"
    );
    let limited = run_spec(
        &cell,
        |s| s.rlimits = vec![(libc::RLIMIT_NOFILE, Some(100), Some(200))],
        &["sh", "-c", "ulimit -Sn; ulimit -Hn"],
    );
    assert_eq!(limited.text, "100\n200\n");
}

#[test]
fn a_terminal_has_job_control_and_a_size() {
    let world = World::new();
    let cell = world.cell();
    let mut spec = spec(
        &["bash", "--norc", "--noprofile", "-i"],
        Stdio::Pty { rows: 31, cols: 97 },
    );
    spec.env.push(("TERM".into(), "dumb".into()));
    spec.env.push(("PS1".into(), "".into()));
    let started = cell.exec(spec).unwrap();
    let mut terminal = Screen::new(started.pty_master.as_ref().unwrap());
    terminal.type_line("stty size; tty; sleep 50");
    terminal.expect("31 97");
    terminal.expect("/dev/pts/");
    eventually("the sleep is in the foreground", || {
        cell.cgroup()
            .procs()
            .unwrap()
            .iter()
            .any(|pid| comm(*pid) == "sleep")
    });
    terminal.press(0x1a); // Ctrl-Z
    terminal.expect("Stopped");
    terminal.type_line("jobs; kill %1; wait; fg");
    terminal.expect("sleep 50");
    terminal.type_line("sh -c 'kill -TERM $$'; echo status=$?");
    terminal.expect("status=143");
    let size = rustix::termios::Winsize {
        ws_row: 10,
        ws_col: 20,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    rustix::termios::tcsetwinsize(started.pty_master.as_ref().unwrap(), size).unwrap();
    terminal.type_line("stty size");
    terminal.expect("10 20");
    terminal.type_line("exit 3");
    assert_eq!(wait_for(&cell, &started), ExitStatus::Code(3));
}

fn comm(pid: i32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm"))
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// The owner's end of a terminal.
struct Screen {
    file: File,
    seen: String,
}

impl Screen {
    fn new(master: &impl AsFd) -> Self {
        Self {
            file: master.as_fd().try_clone_to_owned().unwrap().into(),
            seen: String::new(),
        }
    }

    fn press(&mut self, key: u8) {
        self.file.write_all(&[key]).unwrap();
    }

    fn type_line(&mut self, line: &str) {
        self.file.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    /// Reads on until the text has appeared after what was expected before.
    fn expect(&mut self, text: &str) {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(at) = self.seen.find(text) {
                self.seen.drain(..at + text.len());
                return;
            }
            assert!(Instant::now() < end, "no {text:?} in {:?}", self.seen);
            let mut ready = [rustix::event::PollFd::new(
                &self.file,
                rustix::event::PollFlags::IN,
            )];
            let wait = rustix::event::Timespec {
                tv_sec: 0,
                tv_nsec: 100_000_000,
            };
            if rustix::event::poll(&mut ready, Some(&wait)).unwrap() > 0 {
                let mut buffer = [0; 4096];
                let length = self.file.read(&mut buffer).unwrap();
                self.seen.push_str(&String::from_utf8_lossy(&buffer[..length]));
            }
        }
    }
}

#[test]
fn a_terminal_of_another_user_belongs_to_that_user() {
    let world = World::new();
    let cell = world.cell();
    let mut spec = spec(
        &["sh", "-c", "echo mine > $(tty); stat -c %u $(tty)"],
        Stdio::Pty { rows: 24, cols: 80 },
    );
    (spec.uid, spec.gid) = (1000, 1000);
    let started = cell.exec(spec).unwrap();
    let mut terminal = Screen::new(started.pty_master.as_ref().unwrap());
    terminal.expect("mine");
    terminal.expect("1000");
    assert_eq!(wait_for(&cell, &started), ExitStatus::Code(0));
}

#[test]
fn long_arguments_and_large_environments_arrive() {
    let world = World::new();
    let cell = world.cell();
    let long = "x".repeat(100_000);
    let output = run_spec(
        &cell,
        |spec| {
            spec.env
                .extend((0..20).map(|n| (format!("V{n}").into(), "y".repeat(50_000).into())))
        },
        &[
            "sh",
            "-c",
            "printf %s \"$1\" | wc -c; printf %s \"$V19\" | wc -c",
            "sh",
            &long,
        ],
    );
    assert_eq!(output.text, "100000\n50000\n");
    let mut beyond = spec(&["true"], piped().0);
    beyond
        .env
        .extend((0..100).map(|n| (format!("V{n}").into(), "y".repeat(100_000).into())));
    assert!(cell.exec(beyond).is_err());
    cell.ping().unwrap();
}

#[test]
fn orphans_are_collected_and_reported() {
    let world = World::new();
    let cell = world.cell();
    // Its own end is among the news too.
    let (_shell, _output) = start(
        &cell,
        &[
            "sh",
            "-c",
            "(sleep 0.05 &) ; (sh -c 'sleep 0.1; exit 5' &); echo done",
        ],
    );
    let mut orphans = 0;
    eventually("both orphans are reported", || {
        orphans += cell
            .poll_events()
            .unwrap()
            .iter()
            .filter(|deltabox_isolation::Event::Exited { start, .. }| start.is_none())
            .count();
        orphans >= 2
    });
    assert_eq!(sh(&cell, "ps -eo stat= | grep -c Z || true"), "0");
}

#[test]
fn an_owner_that_does_not_listen_misses_orphans_only() {
    let world = World::new();
    let cell = world.cell();
    let flood =
        "import os\nfor n in range(2000):\n  if os.fork() == 0:\n    os.fork()\n    os._exit(0)\n  os.wait()";
    let (first, _output) = start(&cell, &["true"]);
    let (flooding, mut output) = start(&cell, &["python3", "-c", flood]);
    output.read_to_string(&mut String::new()).unwrap();
    let (last, _output) = start(&cell, &["true"]);
    eventually("all have ended", || cell.cgroup().procs().unwrap().is_empty());
    let mut ends = Vec::new();
    eventually("the ends of all commands are told", || {
        ends.extend(cell.poll_events().unwrap());
        let starts: Vec<_> = ends
            .iter()
            .filter_map(|deltabox_isolation::Event::Exited { start, .. }| *start)
            .collect();
        starts == [first.start, flooding.start, last.start]
    });
    // What was not told is bounded by what init and the socket keep.
    assert!(ends.len() >= 500, "{}", ends.len());
}

#[test]
fn a_held_zombie_stays_until_it_is_released() {
    let world = World::new();
    let cell = world.cell();
    let (held, _output) = start(&cell, &["sleep", "100"]);
    cell.hold_zombie(held.pid_inside, true).unwrap();
    pidfd_send_signal(&held.pidfd, Signal::KILL).unwrap();
    let state = || sh(&cell, &format!("ps -o stat= -p {} || true", held.pid_inside));
    eventually("it is a zombie", || state().starts_with('Z'));
    // Others are collected meanwhile.
    assert_eq!(run(&cell, &["true"]).status, ExitStatus::Code(0));
    assert!(state().starts_with('Z'));
    cell.hold_zombie(held.pid_inside, false).unwrap();
    assert_eq!(
        wait_for(&cell, &held),
        ExitStatus::Signal {
            signal: libc::SIGKILL,
            core: false
        }
    );
    assert_eq!(state(), "");
}

#[test]
fn pids_can_be_chosen() {
    let world = World::new();
    let cell = world.cell();
    cell.set_last_pid(7000).unwrap();
    assert_eq!(start(&cell, &["sleep", "1"]).0.pid_inside, 7001);
    for confine in [false, true] {
        let pid = 4321 + i32::from(confine);
        let skeleton = cell
            .skeleton(&SkeletonSpec {
                pid_inside: Some(pid),
                confine,
            })
            .unwrap();
        assert_eq!(skeleton.pid_inside, pid);
        assert!(cell.cgroup().procs().unwrap().contains(&skeleton.pid));
        eventually("it has stopped itself", || {
            status_of(skeleton.pid, "State").starts_with('T')
        });
        assert_eq!(
            std::fs::read_dir(format!("/proc/{}/fd", skeleton.pid))
                .unwrap()
                .count(),
            0
        );
        assert_eq!(
            status_of(skeleton.pid, "NoNewPrivs"),
            if confine { "1" } else { "0" }
        );
        assert_eq!(status_of(skeleton.pid, "SigBlk"), "0000000000000000");
        let taken = cell
            .skeleton(&SkeletonSpec {
                pid_inside: Some(pid),
                confine,
            })
            .unwrap_err();
        assert!(matches!(taken, Error::PidTaken { pid: other } if other == pid));
        pidfd_send_signal(&skeleton.pidfd, Signal::KILL).unwrap();
        wait_for(&cell, &skeleton);
    }
}

fn status_of(pid: i32, field: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status
        .lines()
        .find_map(|line| {
            line.strip_prefix(field)?
                .strip_prefix(':')
                .map(|value| value.trim().to_owned())
        })
        .unwrap()
}

#[test]
fn users_are_looked_up_in_the_sandbox() {
    let world = World::new();
    let cell = world.cell();
    sh(
        &cell,
        "rm -rf /etc/passwd /etc/group 2>/dev/null; \
         mkdir -p /tmp/etc; \
         printf 'root:x:0:0::/root:/bin/bash\\nann:x:1234:2345:Ann:/home/ann:\\n' > /tmp/etc/passwd; \
         printf 'staff:x:3456:bob,ann\\nown:x:2345:ann\\n' > /tmp/etc/group",
    );
    // Its own directory as the root: what counts is what the given root holds.
    let root = cell.root().unwrap();
    let tmp = rustix::fs::openat(
        &root,
        "tmp",
        rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )
    .unwrap();
    let ann = users::resolve(&tmp, "ann").unwrap();
    assert_eq!(
        (ann.uid, ann.gid, ann.groups, ann.home.as_str()),
        (1234, 2345, vec![3456], "/home/ann")
    );
    assert_eq!(ann.shell, "/bin/sh");
    let both = users::resolve(&tmp, "ann:staff").unwrap();
    assert_eq!((both.uid, both.gid, both.groups), (1234, 3456, vec![]));
    let number = users::resolve(&tmp, "77:88").unwrap();
    assert_eq!((number.uid, number.gid, number.home.as_str()), (77, 88, "/"));
    assert!(
        users::resolve(&tmp, "eve")
            .unwrap_err()
            .to_string()
            .contains("eve")
    );
    assert!(
        users::resolve(&tmp, "ann:nogroup")
            .unwrap_err()
            .to_string()
            .contains("nogroup")
    );
    assert!(users::resolve(&tmp, "70000").is_err());
    assert!(users::resolve(&tmp, "99999999999").is_err());
    // Hostile files: a FIFO must not make the owner wait, a link must not lead outside the root.
    sh(&cell, "rm /tmp/etc/passwd; mkfifo /tmp/etc/passwd");
    assert!(users::resolve(&tmp, "ann").is_err());
    sh(
        &cell,
        "rm /tmp/etc/passwd; ln -s /../../../etc/passwd /tmp/etc/passwd",
    );
    assert!(users::resolve(&tmp, "root").is_err());
}
