//! Processes that outlive the daemon, on disk.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use crate::support::{Home, Random, until};
use crate::witness::{self, remembers};

fn start(home: &Home) {
    home.ok(&["create", "--name", "box"]);
    witness::start(home, "box");
}

/// Two durable checkpoints of the witness, between which it was told a word.
fn two_checkpoints(home: &Home) -> (String, String) {
    start(home);
    remembers(home, "box", "one", "one");
    let one = home.ok(&["checkpoint", "box", "--wait", "durable"]);
    remembers(home, "box", "two", "one two");
    (one, home.ok(&["checkpoint", "box", "--wait", "durable"]))
}

fn segments(home: &Home) -> Vec<PathBuf> {
    let mut found: Vec<_> = fs::read_dir(home.path().join("segments"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    found.sort();
    found
}

#[test]
fn processes_of_a_durable_checkpoint_survive_the_daemon() {
    let home = Home::new();
    let (one, two) = two_checkpoints(&home);
    remembers(&home, "box", "lost", "one two lost");
    let sizes: Vec<u64> = segments(&home)
        .iter()
        .map(|path| fs::metadata(path).unwrap().len())
        .collect();
    assert_eq!(sizes.len(), 2);
    assert!(
        sizes[1] * 3 < sizes[0],
        "the second holds what changed: {sizes:?}"
    );
    home.kill_daemon();
    assert_eq!(home.ok(&["resume", "box"]), two);
    remembers(&home, "box", "", "one two");
    home.ok(&["rollback", "box", &one]);
    remembers(&home, "box", "", "one");
    // What came from disk goes on like any other: changed, checkpointed, forked, and back again after another death.
    remembers(&home, "box", "three", "one three");
    home.ok(&["checkpoint", "box", "--wait", "durable"]);
    home.ok(&["fork", "box", "--from", &two, "--name", "child"]);
    remembers(&home, "child", "", "one two");
    home.ok(&["checkpoint", "child", "--wait", "durable"]);
    home.kill_daemon();
    home.ok(&["rm", "box"]);
    home.ok(&["resume", "child"]);
    remembers(&home, "child", "", "one two");
    assert_eq!(home.json(&["fsck"])["damaged"].as_array().unwrap().len(), 0);
    home.ok(&["rm", "--force", "child"]);
    assert_eq!(segments(&home), Vec::<PathBuf>::new());
}

#[test]
fn a_paused_sandbox_has_no_processes_and_comes_back() {
    let home = Home::new();
    start(&home);
    remembers(&home, "box", "one", "one");
    let before = home.json(&["inspect", "box"])["init_pid"].as_i64().unwrap();
    let made = home.json(&["pause", "box"]);
    assert_eq!((&made["durable"], &made["processes"]), (&true.into(), &1.into()));
    assert!(!PathBuf::from(format!("/proc/{before}")).exists());
    let state = home.json(&["inspect", "box"]);
    assert_eq!(
        (&state["status"], &state["current"]),
        (&"stopped".into(), &made["id"])
    );
    home.refuses(125, &["exec", "box", "true"]);
    home.refuses(4, &["pause", "box"]);
    home.ok(&["resume", "box"]);
    remembers(&home, "box", "two", "one two");
    home.refuses(4, &["resume", "box"]);
    home.ok(&["pause", "box"]);
    home.kill_daemon();
    home.ok(&["resume", "box", made["id"].as_str().unwrap()]);
    remembers(&home, "box", "", "one");
}

#[test]
fn a_damaged_checkpoint_is_named_and_refused_and_the_others_work() {
    let home = Home::new();
    let (one, two) = two_checkpoints(&home);
    home.kill_daemon();
    let damaged = &segments(&home)[1];
    let file = fs::File::options().read(true).write(true).open(damaged).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 1000).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 1000).unwrap();
    let (code, _) = home.fails(&["fsck"]);
    assert_eq!(code, 1);
    let found = home.output(&["fsck", "--json"]);
    let found: serde_json::Value = serde_json::from_slice(&found.stdout).unwrap();
    assert_eq!(found["checkpoints"], 2);
    assert_eq!(found["damaged"].as_array().unwrap().len(), 1);
    assert_eq!(found["damaged"][0]["checkpoint"], *two);
    let said = home.refuses(1, &["resume", "box"]);
    assert!(said.contains(&two) && said.contains("checksum"), "{said}");
    home.ok(&["resume", "box", &one]);
    remembers(&home, "box", "", "one");
}

#[test]
fn a_sandbox_is_removed_while_its_checkpoint_is_on_its_way_to_disk() {
    let home = Home::new();
    let mut random = Random::new();
    for _ in 0..8 {
        start(&home);
        remembers(&home, "box", "one", "one");
        home.ok(&["checkpoint", "box"]);
        std::thread::sleep(Duration::from_millis(random.below(90) as u64));
        home.ok(&["rm", "--force", "box"]);
    }
    home.ok(&["stop"]);
    assert!(!home.log().contains("ERROR"), "{}", home.log());
    assert_eq!(segments(&home), Vec::<PathBuf>::new());
    assert_eq!(fs::read_dir(home.path().join("contents")).unwrap().count(), 0);
}

/// Sets a timer to a time a day ahead, and says whether both have been right since.
const CLOCKS: &str = r"
import ctypes, os, struct, time
libc = ctypes.CDLL(None)
timer = libc.timerfd_create(1, 0)
start = time.monotonic()
due = int(start) + 86400
assert libc.timerfd_settime(timer, 1, struct.pack('qqqq', 0, 0, due, 0), None) == 0
os.mkfifo('/tmp/in'); os.mkfifo('/tmp/out')
while True:
    open('/tmp/in').read()
    setting = ctypes.create_string_buffer(32)
    libc.timerfd_gettime(timer, setting)
    left = struct.unpack('qqqq', setting.raw)[2]
    now = time.monotonic()
    with open('/tmp/out', 'w') as out:
        print(0 <= now - start < 3600, abs(due - now - left) < 5, file=out)
";

#[test]
fn clocks_go_on_after_the_machine_has_started_again() {
    let home = Home::new();
    let ask = |sandbox| {
        home.sh(
            sandbox,
            "while ! [ -p /tmp/out ]; do sleep 0.02; done; echo > /tmp/in; cat /tmp/out",
        )
    };
    // For this daemon the machine has been running for much longer.
    let mut shifted = std::process::Command::new("unshare");
    let arguments = [
        "--time",
        "--monotonic",
        "10000000",
        "--boottime",
        "20000000",
        "--fork",
        "--kill-child",
    ];
    shifted.args(arguments).arg(env!("CARGO_BIN_EXE_deltabox"));
    shifted
        .args(["serve", "--pool", "1"])
        .env("DELTABOX_HOME", home.path());
    let mut daemon = shifted.stderr(std::process::Stdio::null()).spawn().unwrap();
    until("the daemon listens", || home.path().join("daemon.sock").exists());
    home.ok(&["create", "--name", "box"]);
    home.ok(&["exec", "-d", "box", "python3", "-c", CLOCKS]);
    assert_eq!(ask("box"), "True True");
    let one = home.ok(&["checkpoint", "box"]);
    let two = home.ok(&["checkpoint", "box", "--wait", "durable"]);
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    until("the daemon has ended", || home.loop_devices() == 0);
    home.ok(&["resume", "box", &one]);
    assert_eq!(ask("box"), "True True");
    home.ok(&["rollback", "box", &two]);
    assert_eq!(ask("box"), "True True");
    let three = home.ok(&["checkpoint", "box", "--wait", "durable"]);
    home.ok(&["fork", "box", "--name", "child"]);
    assert_eq!(ask("child"), "True True");
    home.kill_daemon();
    home.ok(&["resume", "box", &three]);
    assert_eq!(ask("box"), "True True");
}
