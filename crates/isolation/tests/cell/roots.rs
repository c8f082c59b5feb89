//! Attaching and switching roots.

use std::io::Write;
use std::os::fd::OwnedFd;

use deltabox_isolation::{Bind, Cell, ExitStatus, Limits, RootSpec};
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid, chownat, mkdirat, openat, symlinkat};

use crate::support::{World, eventually, root_for, run, sh, start, tmpfs, wait_for};

fn write_file(root: &OwnedFd, path: &str, content: &str) {
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
    let mut file: std::fs::File = openat(root, path, flags, Mode::from_raw_mode(0o644))
        .unwrap()
        .into();
    file.write_all(content.as_bytes()).unwrap();
}

#[test]
fn a_new_root_takes_the_place_of_the_old_one() {
    let world = World::new();
    let cell = world.cell();
    sh(&cell, "echo old > /tmp/which");
    // It reports what it sees, forever, with the root itself as its working directory.
    let script =
        "while :; do cat tmp/which 2>&1; cat /proc/self/mounts | grep -c /proc; sleep 0.02; done > mnt/log";
    let (watcher, _output) = start(&cell, &["sh", "-c", script]);
    eventually("the watcher runs", || {
        sh(&cell, "cat /mnt/log 2>/dev/null || true").contains("old")
    });

    let next = root_for(cell.uid_base());
    write_file(&next, "tmp/which", "new\n");
    cell.cgroup().freeze(std::time::Duration::from_secs(5)).unwrap();
    let old = cell.switch_root(next).unwrap().expect("the old root comes back");
    cell.cgroup().thaw().unwrap();
    assert_eq!(sh(&cell, "cat /tmp/which"), "new");
    // The running process followed: its root, and its working directory, are the new root.
    let sees = || {
        let root = std::fs::read_link(format!("/proc/{}/root", watcher.pid)).unwrap();
        assert_eq!(root.to_string_lossy(), "/");
        std::fs::read_to_string(format!("/proc/{}/root/tmp/which", watcher.pid)).unwrap()
    };
    assert_eq!(sees(), "new\n");
    let cwd = std::fs::read_to_string(format!("/proc/{}/cwd/tmp/which", watcher.pid)).unwrap();
    assert_eq!(cwd, "new\n");
    // Furniture is complete, and the old root is gone from the table of mounts.
    assert_eq!(
        sh(
            &cell,
            "echo x > /dev/null; cat /proc/sys/kernel/hostname; ls /sys | wc -l; ls /dev/pts"
        ),
        "box\n12\nptmx".replace("12", &sh(&cell, "ls /sys | wc -l"))
    );
    assert_eq!(sh(&cell, "grep -c ' / / ' /proc/self/mountinfo"), "1");
    assert_eq!(
        sh(&cell, "cat /proc/keys /proc/timer_list 2>/dev/null | wc -c"),
        "0"
    );
    drop(old);
    // And again, several times.
    for round in 0..5 {
        let next = root_for(cell.uid_base());
        write_file(&next, "tmp/which", &format!("{round}\n"));
        cell.switch_root(next).unwrap();
        assert_eq!(sh(&cell, "cat /tmp/which"), round.to_string());
    }
    assert_eq!(sh(&cell, "grep -c ' / / ' /proc/self/mountinfo"), "1");
    cell.destroy().unwrap();
}

#[test]
fn binds_are_in_the_first_root_and_in_its_successors() {
    let world = World::new();
    let cell = world.spawner().cell(&world.spec(Limits::default())).unwrap();
    let shared = tmpfs();
    write_file(&shared, "hello", "from outside\n");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "a file\n").unwrap();
    std::fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let binds = vec![
        Bind {
            mount: shared,
            target: "/srv/some/where".into(),
        },
        Bind::of_path(file.path(), "/mnt/file").unwrap(),
    ];
    cell.attach_root(
        root_for(cell.uid_base()),
        RootSpec {
            hostname: None,
            binds,
        },
    )
    .unwrap_err();
    // /srv belongs to the machine's root here, so it could not be made; nothing was changed by the attempt.
    let binds = vec![
        Bind::of_path(file.path(), "/mnt/file").unwrap(),
        Bind {
            mount: tmpfs(),
            target: "/mnt/a/b".into(),
        },
    ];
    cell.attach_root(
        root_for(cell.uid_base()),
        RootSpec {
            hostname: None,
            binds,
        },
    )
    .unwrap();
    for _ in 0..3 {
        assert_eq!(
            sh(&cell, "cat /mnt/file; stat -f -c %T /mnt/a/b"),
            "a file\ntmpfs"
        );
        cell.switch_root(root_for(cell.uid_base())).unwrap();
    }
}

#[test]
fn a_root_that_does_not_fit_changes_nothing() {
    let world = World::new();
    let cell = world.cell();
    sh(&cell, "echo here > /tmp/which");
    let fails = |build: &dyn Fn(&OwnedFd)| {
        let root = owned_tmpfs(&cell);
        build(&root);
        let error = cell.switch_root(root).unwrap_err().to_string();
        assert_eq!(
            sh(
                &cell,
                "cat /tmp/which; echo x > /dev/null; cat /proc/self/comm; ls -d /sys/kernel"
            ),
            "here\ncat\n/sys/kernel"
        );
        assert_eq!(sh(&cell, "grep -c ' / / ' /proc/self/mountinfo"), "1");
        error
    };
    assert!(fails(&|root| write_file(root, "proc", "a file")).contains("/proc"));
    assert!(fails(&|root| symlinkat("/nowhere", root, "dev").unwrap()).contains("/dev"));
    assert!(fails(&|root| symlinkat("dev", root, "dev").unwrap()).contains("/dev"));
    assert!(fails(&|root| write_file(root, "run", "a file")).contains("/run"));
}

fn owned_tmpfs(cell: &Cell) -> OwnedFd {
    let root = tmpfs();
    let base = cell.uid_base();
    chownat(
        &root,
        "",
        Some(Uid::from_raw(base)),
        Some(Gid::from_raw(base)),
        AtFlags::EMPTY_PATH,
    )
    .unwrap();
    root
}

#[test]
fn links_in_a_hostile_root_stay_inside_it() {
    let world = World::new();
    let cell = world.spawner().cell(&world.spec(Limits::default())).unwrap();
    let root = owned_tmpfs(&cell);
    for dir in ["real", "real/proc"] {
        mkdirat(&root, dir, Mode::from_raw_mode(0o755)).unwrap();
        let base = cell.uid_base();
        chownat(
            &root,
            dir,
            Some(Uid::from_raw(base)),
            Some(Gid::from_raw(base)),
            AtFlags::empty(),
        )
        .unwrap();
    }
    symlinkat("/../../real/proc", &root, "proc").unwrap();
    symlinkat("../../../../run", &root, "run").unwrap();
    // The last one leads to itself: refused. The first leads to a directory of the root: taken.
    assert!(
        cell.attach_root(root, RootSpec::default())
            .unwrap_err()
            .to_string()
            .contains("/run")
    );
    // Still without a root, and still able to take one.
    cell.attach_root(root_for(cell.uid_base()), RootSpec::default())
        .unwrap();
    assert_eq!(sh(&cell, "hostname"), "sandbox");
}

#[test]
fn commands_need_a_root() {
    let world = World::new();
    let cell = world.spawner().cell(&world.spec(Limits::default())).unwrap();
    let (stdio, _output) = crate::support::piped();
    assert!(
        cell.exec(crate::support::spec(&["true"], stdio))
            .unwrap_err()
            .to_string()
            .contains("root")
    );
    assert!(cell.root().is_err());
}

#[test]
fn a_process_below_the_old_root_keeps_it_alive() {
    let world = World::new();
    let cell = world.cell();
    sh(&cell, "mkdir /tmp/deep; echo old > /tmp/deep/file");
    let (stays, _output) = start(
        &cell,
        &[
            "sh",
            "-c",
            "cd /tmp/deep; while [ ! -e /tmp/stop ]; do sleep 0.02; done; cat file; cat ../../proc/self/comm || true",
        ],
    );
    eventually("it has arrived", || {
        std::fs::read_link(format!("/proc/{}/cwd", stays.pid)).is_ok_and(|cwd| cwd.ends_with("deep"))
    });
    drop(cell.switch_root(root_for(cell.uid_base())).unwrap());
    assert_eq!(run(&cell, &["touch", "/tmp/stop"]).status, ExitStatus::Code(0));
    assert_eq!(wait_for(&cell, &stays), ExitStatus::Code(0));
}

#[test]
fn a_switch_that_fails_half_way_is_undone() {
    let world = World::new();
    let whole =
        "ls -d /proc/self /sys/kernel /dev/pts/ptmx; echo x > /dev/null; tty > /dev/null || cat /mnt/keep";
    // The first root: not a mount but a directory of one, which cannot be moved. /proc, /sys and /dev were by then.
    let cell = world.spawner().cell(&world.spec(Limits::default())).unwrap();
    let not_a_mount = || {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open("/etc", flags, Mode::empty()).unwrap()
    };
    let binds = vec![Bind {
        mount: not_a_mount(),
        target: "/mnt/bad".into(),
    }];
    cell.attach_root(
        root_for(cell.uid_base()),
        RootSpec {
            hostname: None,
            binds,
        },
    )
    .unwrap_err();
    let root = root_for(cell.uid_base());
    write_file(&root, "mnt/keep", "kept\n");
    cell.attach_root(root, RootSpec::default()).unwrap();
    assert!(sh(&cell, whole).ends_with("kept"));
    assert_eq!(sh(&cell, "grep -c ' / / ' /proc/self/mountinfo"), "1");
    // A name that is refused, before the root is touched.
    let cell = world.spawner().cell(&world.spec(Limits::default())).unwrap();
    let long = RootSpec {
        hostname: Some("x".repeat(100)),
        binds: vec![],
    };
    assert!(
        cell.attach_root(root_for(cell.uid_base()), long)
            .unwrap_err()
            .to_string()
            .contains("hostname")
    );
    cell.attach_root(root_for(cell.uid_base()), RootSpec::default())
        .unwrap();
    assert_eq!(sh(&cell, "hostname"), "sandbox");
}
