//! Limits hold, init keeps serving, processes freeze.

use std::time::{Duration, Instant};

use deltabox_isolation::cgroup::Place;
use deltabox_isolation::{Error, ExitStatus, Limits};

use crate::support::{World, eventually, piped, run, sh, spec, start, wait_for};

const MIB: u64 = 1 << 20;

#[test]
fn this_machine_can_limit_everything() {
    let world = World::new();
    let features = world.spawner().driver().features();
    for (what, place) in [
        ("memory", &features.memory),
        ("pids", &features.pids),
        ("cpu", &features.cpu),
    ] {
        assert!(
            !matches!(place, Place::Nowhere(_)),
            "{what}: {place:?}; the tests of limits need it"
        );
    }
}

#[test]
fn a_memory_hog_is_killed_and_init_is_not() {
    let world = World::new();
    let cell = world.cell_with(Limits {
        memory_bytes: Some(64 * MIB),
        ..Limits::default()
    });
    let hog = "x = bytearray(1 << 20)\nheld = []\nwhile True: held.append(bytes(b'x' * (1 << 20)))";
    assert_eq!(
        run(&cell, &["python3", "-c", hog]).status,
        ExitStatus::Signal {
            signal: libc::SIGKILL,
            core: false
        }
    );
    let stats = cell.stats().unwrap();
    assert!(stats.oom_kills.unwrap() >= 1, "{stats:?}");
    assert!(stats.memory_peak_bytes.unwrap() <= 64 * MIB, "{stats:?}");
    assert!(stats.memory_peak_bytes.unwrap() >= 32 * MIB, "{stats:?}");
    // Many small processes at the limit: the victims are they.
    let many = "for i in $(seq 200); do sleep 30 >/dev/null 2>&1 & done; python3 -c 'x=[bytes(b\"y\"*(1<<20)) for _ in range(100)]'; true";
    run(&cell, &["sh", "-c", many]);
    cell.ping().unwrap();
    assert_eq!(sh(&cell, "echo alive"), "alive");
    // Raising it lets the same program live.
    cell.kill_all().unwrap();
    cell.set_limits(&Limits {
        memory_bytes: Some(512 * MIB),
        ..Limits::default()
    })
    .unwrap();
    let modest = "held = [bytes(b'x' * (1 << 20)) for _ in range(128)]";
    assert_eq!(run(&cell, &["python3", "-c", modest]).status, ExitStatus::Code(0));
    cell.set_limits(&Limits::default()).unwrap();
    assert_eq!(run(&cell, &["python3", "-c", modest]).status, ExitStatus::Code(0));
}

#[test]
fn a_fork_bomb_stops_at_the_limit_and_init_serves_on() {
    let world = World::new();
    let cell = world.cell_with(Limits {
        pids: Some(20),
        ..Limits::default()
    });
    let bomb = "import os, time\nn = 0\nwhile True:\n  try:\n    if os.fork() == 0: time.sleep(100)\n    n += 1\n  except OSError: print(n, flush=True); time.sleep(100)";
    let (_bomb, mut output) = start(&cell, &["python3", "-c", bomb]);
    let mut count = [0; 8];
    let length = std::io::Read::read(&mut output, &mut count).unwrap();
    assert_eq!(String::from_utf8_lossy(&count[..length]).trim(), "19");
    assert_eq!(cell.stats().unwrap().pids, Some(20));
    assert!(matches!(
        cell.exec(spec(&["true"], piped().0)),
        Err(Error::ProcessLimit)
    ));
    cell.ping().unwrap();
    cell.kill_all().unwrap();
    assert_eq!(run(&cell, &["true"]).status, ExitStatus::Code(0));
    assert_eq!(cell.cgroup().procs().unwrap(), Vec::<i32>::new());
}

#[test]
fn a_fast_fork_bomb_can_be_killed() {
    let world = World::new();
    let cell = world.cell_with(Limits {
        pids: Some(200),
        ..Limits::default()
    });
    let bomb = "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass";
    let (_bomb, _output) = start(&cell, &["python3", "-c", bomb]);
    eventually("it fills the limit", || cell.stats().unwrap().pids.unwrap() > 100);
    cell.ping().unwrap();
    cell.kill_all().unwrap();
    assert_eq!(sh(&cell, "echo alive"), "alive");
    cell.destroy().unwrap();
}

#[test]
fn processor_time_is_bounded() {
    let world = World::new();
    let cell = world.cell_with(Limits {
        cpus: Some(0.2),
        ..Limits::default()
    });
    let before = cell.stats().unwrap().cpu_usec.unwrap();
    let begun = Instant::now();
    let (spinner, _output) = start(&cell, &["sh", "-c", "while :; do :; done"]);
    std::thread::sleep(Duration::from_millis(1500));
    let used = cell.stats().unwrap().cpu_usec.unwrap() - before;
    let share = used as f64 / begun.elapsed().as_micros() as f64;
    assert!(share < 0.35, "used {share} of a processor");
    assert!(share > 0.02, "used {share} of a processor");
    cell.kill_all().unwrap();
    assert_eq!(
        wait_for(&cell, &spinner),
        ExitStatus::Signal {
            signal: libc::SIGKILL,
            core: false
        }
    );
}

#[test]
fn senseless_limits_are_refused() {
    let world = World::new();
    for limits in [
        Limits {
            cpus: Some(f64::NAN),
            ..Limits::default()
        },
        Limits {
            cpus: Some(0.0),
            ..Limits::default()
        },
        Limits {
            memory_bytes: Some(4096),
            ..Limits::default()
        },
        Limits {
            pids: Some(0),
            ..Limits::default()
        },
    ] {
        assert!(matches!(
            world.spawner().cell(&world.spec(limits)),
            Err(Error::Invalid(_))
        ));
    }
}

#[test]
fn frozen_processes_stand_still_and_init_does_not() {
    let world = World::new();
    let cell = world.cell();
    let (counter, _output) = start(
        &cell,
        &[
            "sh",
            "-c",
            "i=0; while :; do i=$((i+1)); echo $i > /tmp/count; done",
        ],
    );
    let count =
        || std::fs::read_to_string(format!("/proc/{}/root/tmp/count", counter.pid)).unwrap_or_default();
    eventually("it counts", || !count().is_empty());
    cell.cgroup().freeze(Duration::from_secs(5)).unwrap();
    assert!(cell.cgroup().is_frozen().unwrap());
    let stopped_at = count();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(count(), stopped_at);
    cell.ping().unwrap();
    cell.cgroup().thaw().unwrap();
    eventually("it counts on", || count() != stopped_at && !count().is_empty());
    // Frozen processes can be killed.
    cell.cgroup().freeze(Duration::from_secs(5)).unwrap();
    cell.kill_all().unwrap();
    assert_eq!(
        wait_for(&cell, &counter),
        ExitStatus::Signal {
            signal: libc::SIGKILL,
            core: false
        }
    );
    cell.cgroup().thaw().unwrap();
    assert_eq!(sh(&cell, "echo on"), "on");
}

#[test]
fn a_start_held_up_by_a_freeze_does_not_stop_init() {
    let world = World::new();
    let cell = world.cell();
    let (before, _output) = start(&cell, &["sleep", "100"]);
    let (orphaning, _output) = start(&cell, &["sh", "-c", "sleep 100"]);
    cell.cgroup().freeze(Duration::from_secs(5)).unwrap();
    std::thread::scope(|scope| {
        let late = scope.spawn(|| cell.exec(spec(&["true"], piped().0)));
        eventually("it is born frozen", || cell.cgroup().procs().unwrap().len() >= 3);
        // Others that end meanwhile are collected and reported.
        rustix::process::pidfd_send_signal(&before.pidfd, rustix::process::Signal::KILL).unwrap();
        assert_eq!(
            wait_for(&cell, &before),
            ExitStatus::Signal {
                signal: libc::SIGKILL,
                core: false
            }
        );
        cell.cgroup().thaw().unwrap();
        let late = late.join().unwrap().unwrap();
        assert_eq!(wait_for(&cell, &late), ExitStatus::Code(0));
    });
    drop(orphaning);
}

#[test]
fn the_smallest_memory_limit_kills_commands_and_not_init() {
    let world = World::new();
    let cell = world.cell_with(Limits {
        memory_bytes: Some(MIB),
        ..Limits::default()
    });
    for _ in 0..5 {
        // Whatever becomes of the command: init survives it.
        if let Ok(started) = cell.exec(spec(&["python3", "-c", "print(1)"], piped().0)) {
            wait_for(&cell, &started);
        }
        cell.ping().unwrap();
    }
    cell.set_limits(&Limits::default()).unwrap();
    assert_eq!(sh(&cell, "echo on"), "on");
}
