//! Limits hold.

use std::time::Instant;

use crate::support::{Home, assert_clear};

#[test]
fn a_hog_of_memory_is_killed_and_the_sandbox_lives() {
    let home = Home::new();
    home.ok(&["create", "--name", "box", "--memory", "64M"]);
    let hog = "b = bytearray(300 << 20); b[::4096] = b'x' * len(b[::4096]); print(len(b))";
    let (code, said) = home.fails(&["exec", "box", "--", "/usr/bin/python3", "-c", hog]);
    assert_eq!(code, 137, "{said}");
    assert_eq!(home.sh("box", "echo alive"), "alive");
    let id = home.ok(&["checkpoint", "box"]);
    home.ok(&["rollback", "box", &id]);
}

#[test]
fn the_limit_on_processes_holds_for_forks_and_for_commands() {
    let home = Home::new();
    home.ok(&["create", "--name", "box", "--pids", "12"]);
    let script = "for i in $(seq 1 30); do sleep 1000 & done; echo all";
    let (code, said) = home.fails(&["exec", "box", "--timeout", "20s", "--", "/bin/sh", "-c", script]);
    assert_ne!(code, 0, "{said}");
    let mut refused = None;
    for _ in 0..20 {
        let (code, said) = home.fails(&["exec", "-d", "box", "--", "/bin/sleep", "1000"]);
        if code != 0 {
            refused = Some((code, said));
            break;
        }
    }
    let (code, said) = refused.expect("20 commands where 12 are allowed");
    assert_eq!(code, 125, "{said}");
    assert_clear(&said);
    assert!(said.contains("limit"), "{said}");
    let stats = home.json(&["stats", "box"]);
    assert!(stats["processes"].as_u64().unwrap() <= 12, "{stats}");
    home.ok(&["rm", "--force", "box"]);
}

#[test]
fn processor_time_is_limited() {
    let home = Home::new();
    home.ok(&["create", "--name", "box", "--cpus", "0.3"]);
    let start = Instant::now();
    let script =
        "(while :; do :; done) & (while :; do :; done) & sleep 2; kill %1 %2 2>/dev/null; kill $(jobs -p); :";
    home.ok(&["exec", "box", "--", "/bin/bash", "-c", script]);
    let used = home.json(&["stats", "box"])["cpu_usec"].as_f64().unwrap();
    // A period's worth more may be used at the end.
    let allowed = 0.3 * start.elapsed().as_secs_f64() * 1e6 + 100e3;
    assert!(used <= allowed, "used {used} us of {allowed} us");
    assert!(used > 0.0);
}
