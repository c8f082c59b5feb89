//! Cells end completely, whoever ends them; the pool.

use std::os::fd::AsFd;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use deltabox_isolation::{CellPool, CgroupDriver, Error, Limits, RootSpec};
use rustix::process::{Pid, Signal, kill_process};

use crate::support::{World, eventually, root_for, run, sh, start};

/// Whether any process is in one of these namespaces, or has one of them as its children's.
fn somebody_in(namespaces: &[std::path::PathBuf]) -> bool {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter(|entry| {
            entry
                .file_name()
                .to_string_lossy()
                .bytes()
                .all(|b| b.is_ascii_digit())
        })
        .any(|entry| {
            let links = std::fs::read_dir(entry.path().join("ns"))
                .into_iter()
                .flatten()
                .flatten();
            links
                .filter_map(|link| std::fs::read_link(link.path()).ok())
                .any(|ns| namespaces.contains(&ns))
        })
}

fn namespaces_of(pid: i32) -> Vec<std::path::PathBuf> {
    ["user", "mnt", "pid", "net", "ipc", "uts"]
        .iter()
        .map(|kind| std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap())
        .collect()
}

fn cgroups_named(part: &str) -> Vec<std::path::PathBuf> {
    fn walk(dir: &std::path::Path, part: &str, found: &mut Vec<std::path::PathBuf>) {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if entry.file_name().to_string_lossy().contains(part) {
                    found.push(entry.path());
                } else {
                    walk(&entry.path(), part, found);
                }
            }
        }
    }
    let mut found = Vec::new();
    walk(std::path::Path::new("/sys/fs/cgroup"), part, &mut found);
    found
}

#[test]
fn nothing_is_left_of_a_destroyed_cell() {
    let world = World::new();
    let cell = world.cell();
    let (one, _output) = start(
        &cell,
        &["sh", "-c", "setsid sleep 100 & nohup sleep 100 & sleep 100"],
    );
    eventually("all run", || cell.cgroup().procs().unwrap().len() >= 4);
    let namespaces = namespaces_of(cell.init_pid());
    let mut pids = cell.cgroup().procs().unwrap();
    pids.push(one.pid);
    pids.push(cell.init_pid());
    let id = cell.id().to_owned();
    assert!(somebody_in(&namespaces));
    assert!(
        cgroups_named(&world.state)
            .iter()
            .any(|dir| dir.join(&id).exists())
    );
    cell.destroy().unwrap();
    assert!(!somebody_in(&namespaces));
    assert!(
        cgroups_named(&world.state)
            .iter()
            .all(|dir| !dir.join(&id).exists())
    );
    eventually("the processes are collected", || {
        pids.iter()
            .all(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists())
    });
}

#[test]
fn a_frozen_or_busy_cell_can_be_destroyed() {
    let world = World::new();
    let cell = world.cell();
    let (_one, _output) = start(&cell, &["sh", "-c", "trap '' TERM HUP INT; while :; do :; done"]);
    cell.cgroup().freeze(Duration::from_secs(5)).unwrap();
    cell.destroy().unwrap();
}

#[test]
fn the_death_of_init_is_noticed() {
    let world = World::new();
    let cell = world.cell();
    kill_process(Pid::from_raw(cell.init_pid()).unwrap(), Signal::KILL).unwrap();
    eventually("it is gone", || matches!(cell.ping(), Err(Error::Gone { .. })));
    assert!(matches!(cell.poll_events(), Err(Error::Gone { .. })));
    cell.destroy().unwrap();
}

#[test]
fn cells_end_with_the_spawner_and_the_next_owner_sweeps() {
    let world = World::new();
    let cell = world.cell();
    let (_one, _output) = start(&cell, &["sleep", "1000"]);
    let namespaces = namespaces_of(cell.init_pid());
    kill_process(Pid::from_raw(world.spawner().pid()).unwrap(), Signal::KILL).unwrap();
    eventually("all processes are gone", || !somebody_in(&namespaces));
    assert!(world.spawner().cell(&world.spec(Limits::default())).is_err());
    // As after a crash: nobody removes the cgroups, until a driver of the same state starts.
    std::mem::forget(cell);
    let next = CgroupDriver::detect(&world.state).unwrap();
    next.sweep().unwrap();
    assert!(cgroups_named(&world.state).iter().all(|dir| {
        std::fs::read_dir(dir)
            .unwrap()
            .flatten()
            .all(|e| !e.path().is_dir())
    }));
}

/// This test's own program, in another process: makes a cell and reports it until it is killed.
#[test]
fn cells_end_when_their_owner_is_killed() {
    const ROLE: &str = "ISOLATION_TEST_OWNER";
    if std::env::var_os(ROLE).is_some() {
        let world = World::new();
        let cell = world.cell();
        let (_one, _output) = start(&cell, &["sleep", "1000"]);
        println!(
            "\nREADY {} {} {}",
            world.state,
            world.spawner().pid(),
            cell.init_pid()
        );
        std::thread::sleep(Duration::from_secs(60));
        return;
    }
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "lifecycle::cells_end_when_their_owner_is_killed",
            "--nocapture",
        ])
        .env(ROLE, "1")
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(owner.stdout.take().unwrap()));
    let ready = lines
        .find_map(|line| line.unwrap().strip_prefix("READY ").map(str::to_owned))
        .unwrap();
    let fields: Vec<&str> = ready.split(' ').collect();
    let (state, spawner, init) = (
        fields[0],
        fields[1].parse::<i32>().unwrap(),
        fields[2].parse::<i32>().unwrap(),
    );
    let namespaces = namespaces_of(init);
    assert!(somebody_in(&namespaces));
    owner.kill().unwrap();
    owner.wait().unwrap();
    eventually("the cell is gone", || !somebody_in(&namespaces));
    eventually("the spawner is gone", || {
        let stat = std::fs::read_to_string(format!("/proc/{spawner}/comm")).unwrap_or_default();
        !stat.starts_with("cell-spawner") || zombie(spawner)
    });
    let driver = CgroupDriver::detect(state).unwrap();
    driver.sweep().unwrap();
    driver.remove().unwrap();
    assert_eq!(cgroups_named(state), Vec::<std::path::PathBuf>::new());
}

fn zombie(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .unwrap_or_default()
        .contains(") Z ")
}

#[test]
fn the_pool_has_cells_ready_and_refills() {
    let world = World::new();
    let mut specs = (0..).map(|n| deltabox_isolation::CellSpec {
        id: format!("pooled-{n}"),
        uid_base: 500_000_000 + n * 65536,
        limits: Limits::default(),
    });
    let source = Box::new(move || Ok(specs.next().unwrap()));
    let pool = CellPool::new(Arc::clone(world.spawner()), 3, source).unwrap();
    assert!(pool.wait_full(Duration::from_secs(20)));
    let dead = {
        let first = pool.take().unwrap();
        first
            .attach_root(root_for(first.uid_base()), RootSpec::default())
            .unwrap();
        assert_eq!(sh(&first, "echo pooled"), "pooled");
        first.id().to_owned()
    };
    assert!(pool.wait_full(Duration::from_secs(20)));
    assert_eq!(pool.prepared(), 3);
    // More than are there: made on the spot.
    let many: Vec<_> = (0..8).map(|_| pool.take().unwrap()).collect();
    let ids: std::collections::BTreeSet<_> = many.iter().map(|cell| cell.id().to_owned()).collect();
    assert_eq!(ids.len(), 8);
    assert!(!ids.contains(&dead));
    drop(many);
    drop(pool);
    assert!(cgroups_named(&world.state).iter().all(|dir| {
        std::fs::read_dir(dir)
            .unwrap()
            .flatten()
            .all(|e| !e.path().is_dir())
    }));
}

#[test]
fn a_spawner_that_cannot_start_says_so() {
    let world = World::new();
    let driver = Arc::clone(world.spawner().driver());
    let missing = deltabox_isolation::Spawner::start(Command::new("/no/such/program"), Arc::clone(&driver));
    assert!(missing.unwrap_err().to_string().contains("/no/such/program"));
    let wrong = deltabox_isolation::Spawner::start(Command::new("/bin/true"), Arc::clone(&driver));
    assert!(matches!(wrong.unwrap_err(), Error::Gone { .. }));
    drop(driver);
}

#[test]
fn cells_must_leave_the_machines_ids_alone() {
    let world = World::new();
    for uid_base in [0, 1000, u32::MAX - 100] {
        let spec = deltabox_isolation::CellSpec {
            id: "bad".into(),
            uid_base,
            limits: Limits::default(),
        };
        assert!(matches!(world.spawner().cell(&spec), Err(Error::Invalid(_))));
    }
    for id in ["", "a/b", "..", "x\n"] {
        let spec = deltabox_isolation::CellSpec {
            id: id.into(),
            uid_base: 900_000_000,
            limits: Limits::default(),
        };
        assert!(
            matches!(world.spawner().cell(&spec), Err(Error::Invalid(_))),
            "{id:?}"
        );
    }
}

#[test]
fn clocks_can_be_shifted_before_the_first_command() {
    let world = World::new();
    let cell = world.cell();
    const HOUR: i64 = 3_600_000_000_000;
    cell.set_clock_offsets(24 * HOUR, 48 * HOUR).unwrap();
    let read = "import time; print(int(time.clock_gettime(time.CLOCK_MONOTONIC)), int(time.clock_gettime(time.CLOCK_BOOTTIME)))";
    let inside = run(&cell, &["python3", "-c", read]).text;
    let inside: Vec<i64> = inside.split_whitespace().map(|n| n.parse().unwrap()).collect();
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic).tv_sec as i64;
    assert!((inside[0] - now - 24 * 3600).abs() < 60, "{inside:?} {now}");
    assert!((inside[1] - now - 48 * 3600).abs() < 60, "{inside:?} {now}");
    assert!(
        cell.namespace("time_for_children")
            .unwrap()
            .as_fd()
            .try_clone_to_owned()
            .is_ok()
    );
}

#[test]
fn the_sweep_finds_what_an_owner_in_another_cgroup_left() {
    let world = World::new();
    let Some(top) = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup/memory"]
        .iter()
        .find(|p| std::path::Path::new(p).exists())
    else {
        // Without v1 hierarchies there is one place only.
        assert!(std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists());
        return;
    };
    let elsewhere = std::path::Path::new(top).join(format!("elsewhere-{}", world.state));
    let left = elsewhere.join(format!("deltabox-{}", world.state)).join("cell-1");
    std::fs::create_dir_all(&left).unwrap();
    let mut process = Command::new("sleep").arg("100").spawn().unwrap();
    std::fs::write(left.join("cgroup.procs"), process.id().to_string()).unwrap();
    world.driver.as_ref().unwrap().sweep().unwrap();
    assert!(!process.wait().unwrap().success());
    assert_eq!(
        std::fs::read_dir(&elsewhere)
            .unwrap()
            .flatten()
            .filter(|e| e.path().is_dir())
            .count(),
        0
    );
    std::fs::remove_dir(&elsewhere).unwrap();
    // Its own cgroups are still usable.
    let cell = world.cell();
    assert_eq!(sh(&cell, "echo on"), "on");
}

#[test]
fn a_name_that_is_in_use_is_refused_and_its_owner_unharmed() {
    let world = World::new();
    let spec = world.spec(Limits::default());
    let cell = world.spawner().cell(&spec).unwrap();
    assert!(
        world
            .spawner()
            .cell(&spec)
            .unwrap_err()
            .to_string()
            .contains(&spec.id)
    );
    cell.attach_root(root_for(cell.uid_base()), RootSpec::default())
        .unwrap();
    assert_eq!(sh(&cell, "echo on"), "on");
}
