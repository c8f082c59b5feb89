//! The doctor on this machine, through real probe processes.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use deltabox_doctor::{Options, Report, Status, checks, run};

fn options(store: &Path) -> Options {
    Options {
        program: env!("CARGO_BIN_EXE_doctor-probe").into(),
        store: store.into(),
        timeout: Duration::from_secs(60),
    }
}

fn store() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// What a careless probe working in `dir` would leave. Other doctors may be at work on this machine.
fn traces(dir: &Path) -> BTreeSet<String> {
    let dir = dir.to_str().unwrap();
    let own = |text: &str| text.contains(dir);
    let orphaned = |path: &str| {
        let pid = path.rsplit_once("/deltabox-doctor-").map(|(_, pid)| pid);
        pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists())
    };
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mut found: BTreeSet<String> = mounts.lines().filter(|l| own(l)).map(String::from).collect();
    for line in mounts.lines().filter(|l| l.contains(" - cgroup")) {
        let path = line.split(' ').nth(4).unwrap();
        let groups = fs::read_dir(path)
            .into_iter()
            .flatten()
            .flatten()
            .map(|e| e.path().display().to_string());
        found.extend(groups.filter(|p| orphaned(p)));
    }
    for entry in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        let backing = fs::read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default();
        if own(&backing) {
            found.insert(backing);
        }
    }
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        if own(&String::from_utf8_lossy(&environment)) {
            found.insert(entry.path().display().to_string());
        }
    }
    found
}

/// Loop devices and control groups vanish a moment after their last user. One test runs the doctor at a time,
/// so that one's probes are not another's traces.
static ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

fn no_traces(dir: &Path) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !traces(dir).is_empty() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(traces(dir), BTreeSet::new());
    assert_eq!(
        fs::read_dir(dir).unwrap().count(),
        0,
        "files were left in {}",
        dir.display()
    );
}

#[test]
fn this_machine_can_run_and_nothing_is_left_behind() {
    let _one = ONE.lock().unwrap_or_else(|e| e.into_inner());
    let dir = store();
    let report = run(&options(&dir.path().join("not/yet/made"))).unwrap();
    for check in &report.checks {
        println!(
            "{:18} {:9} {} {}",
            check.name,
            format!("{:?}", check.status),
            if check.required { "!" } else { " " },
            check.detail
        );
        assert_eq!(check.lost.is_empty(), check.status == Status::Works);
    }
    assert!(report.can_run(), "{report:#?}");
    assert_eq!(report.checks.len(), checks().len());
    assert_eq!(
        serde_json::from_str::<Report>(&serde_json::to_string(&report).unwrap()).unwrap(),
        report
    );
    no_traces(dir.path());
}

#[test]
fn a_hanging_probe_is_ended_and_is_a_result() {
    let _one = ONE.lock().unwrap_or_else(|e| e.into_inner());
    let dir = store();
    let script = wrapper(dir.path(), "sleep 1000 & sleep 1000");
    let work = dir.path().join("work");
    fs::create_dir(&work).unwrap();
    let options = Options {
        program: script,
        timeout: Duration::from_millis(20),
        ..options(&work)
    };
    let started = Instant::now();
    let report = run(&options).unwrap();
    assert!(started.elapsed() < Duration::from_secs(60));
    assert!(!report.can_run());
    assert!(
        report
            .checks
            .iter()
            .all(|c| c.status == Status::Missing && c.detail.contains("did not end")),
        "{report:#?}"
    );
    assert!(
        report
            .checks
            .iter()
            .all(|c| !c.remedy.is_empty() && !c.lost.is_empty())
    );
    no_traces(&work);
}

#[test]
fn a_probe_that_dies_or_talks_nonsense_is_a_result() {
    let _one = ONE.lock().unwrap_or_else(|e| e.into_inner());
    let dir = store();
    for program in ["/bin/false", "/bin/echo", "/no/such/program"] {
        let report = run(&Options {
            program: program.into(),
            ..options(dir.path())
        })
        .unwrap();
        assert!(!report.can_run());
        assert!(
            report
                .checks
                .iter()
                .all(|c| c.status == Status::Missing && !c.detail.is_empty())
        );
    }
    no_traces(dir.path());
}

/// A program that runs the probes in some other circumstances.
fn wrapper(dir: &Path, how: &str) -> std::path::PathBuf {
    let script = dir.join("wrapper");
    fs::write(&script, format!("#!/bin/sh\n{how}\n")).unwrap();
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    script
}

#[test]
fn without_privileges_the_probes_fail_and_say_so() {
    let _one = ONE.lock().unwrap_or_else(|e| e.into_inner());
    let (dir, work) = (store(), store());
    let how = format!(
        "exec setpriv --bounding-set=-all {} \"$@\"",
        env!("CARGO_BIN_EXE_doctor-probe")
    );
    let report = run(&Options {
        program: wrapper(dir.path(), &how),
        ..options(work.path())
    })
    .unwrap();
    assert!(!report.can_run());
    let status = |name: &str| report.checks.iter().find(|c| c.name == name).unwrap().status;
    for name in [
        "root",
        "overlay",
        "idmapped",
        "namespace-net",
        "set-tid",
        "ns-last-pid",
        "tcp-repair",
        "btrfs",
    ] {
        assert_eq!(status(name), Status::Missing, "{name}");
    }
    for name in [
        "kernel",
        "namespace-user",
        "userfaultfd",
        "pagemap-scan",
        "ptrace",
        "kcmp",
        "process-vm",
        "seccomp",
    ] {
        assert_eq!(status(name), Status::Works, "{name}: {report:#?}");
    }
    no_traces(work.path());
}

#[test]
fn what_a_killed_doctor_left_is_removed() {
    let _one = ONE.lock().unwrap_or_else(|e| e.into_inner());
    let work = store();
    // No process has this number: it is above the highest the kernel gives.
    fs::create_dir_all(work.path().join(".deltabox-doctor-4194305-0/inside")).unwrap();
    run(&Options {
        program: "/bin/false".into(),
        ..options(work.path())
    })
    .unwrap();
    no_traces(work.path());
}

#[test]
fn an_unwritable_state_directory_is_said_so() {
    let error = run(&options(Path::new("/proc/self"))).unwrap_err().to_string();
    assert!(error.contains("choose a writable state directory"), "{error}");
}
