//! Freezing and rolling back, on every kind of store.

mod support;

use std::fs;
use std::path::Path;

use deltabox_layers::{Base, StoreKind, Way};
use support::{STORES, Sandbox, isolated, open, small_base};

fn each(test: impl Fn(&Path, StoreKind, Way) + Send + Copy + 'static) {
    for (kind, ways) in STORES {
        for way in ways {
            isolated(move |dir| test(dir, kind, *way));
        }
    }
}

#[test]
fn a_rollback_brings_back_what_was_frozen() {
    each(|dir, kind, way| {
        let store = open(dir, kind);
        let base = Base::directory(small_base(dir));
        let mut sandbox = Sandbox::create(&store, dir, "root", base);
        let start = sandbox.files.last();
        sandbox.write("etc/passwd", "one");
        sandbox.write("new", "one");
        let one = sandbox.freeze(way);
        sandbox.write("etc/passwd", "two");
        fs::remove_file(sandbox.path("new")).unwrap();
        fs::rename(sandbox.path("home"), sandbox.path("house")).unwrap();
        let two = sandbox.freeze(way);
        assert_eq!(sandbox.read("etc/passwd"), "two");
        sandbox.write("house/user/notes", "three");

        for _ in 0..2 {
            sandbox.rollback(&one);
            assert_eq!(sandbox.read("etc/passwd"), "one");
            assert_eq!(sandbox.read("new"), "one");
            assert_eq!(sandbox.read("home/user/notes"), "from the base");
            sandbox.files.prepare().unwrap();
            sandbox.rollback(&two);
            assert_eq!(sandbox.read("etc/passwd"), "two");
            assert!(!sandbox.has("new") && !sandbox.has("home"));
            assert_eq!(sandbox.read("house/user/notes"), "from the base");
            sandbox.write("house/user/notes", "discarded");
            sandbox.rollback(&start);
            assert_eq!(sandbox.read("etc/passwd"), "root:x:0:0::/root:/bin/sh\n");
            assert!(!sandbox.has("new"));
        }
    });
}

#[test]
fn an_unchanged_state_freezes_nothing() {
    each(|dir, kind, way| {
        let store = open(dir, kind);
        let mut sandbox = Sandbox::create(&store, dir, "root", Base::directory(small_base(dir)));
        let start = sandbox.freeze_fully(way);
        assert!(start.unchanged);
        sandbox.write("a", "1");
        let one = sandbox.freeze_fully(way);
        assert!(!one.unchanged && one.frozen != start.frozen);
        let again = sandbox.freeze_fully(way);
        assert!(again.unchanged && again.frozen == one.frozen, "{again:?}");
        sandbox.files.prepare().unwrap();
        let prepared = sandbox.freeze_fully(way);
        assert!(prepared.unchanged, "preparing is no change");
        sandbox.rollback(&one.frozen);
        assert!(sandbox.freeze_fully(way).unchanged, "what was prepared is exact");
        sandbox.rollback(&start.frozen);
        assert!(sandbox.freeze_fully(way).unchanged);
        for change in ["chmod", "append", "times"] {
            match change {
                "chmod" => {
                    use std::os::unix::fs::PermissionsExt;
                    fs::set_permissions(&sandbox.root, fs::Permissions::from_mode(0o711)).unwrap();
                }
                "append" => sandbox.write("a", "2"),
                _ => fs::File::open(&sandbox.root)
                    .unwrap()
                    .set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_nanos(1_234_567_891))
                    .unwrap(),
            }
            assert!(!sandbox.freeze_fully(way).unchanged, "{change}");
        }
    });
}

#[test]
fn what_is_frozen_ahead_counts_only_if_nothing_changed_since() {
    isolated(|dir| {
        let store = open(dir, StoreKind::Btrfs);
        let mut sandbox = Sandbox::create(&store, dir, "root", Base::directory(small_base(dir)));
        let mut states = Vec::new();
        for round in 0..60 {
            sandbox.write("a", &format!("first {round:04}"));
            sandbox.files.freeze_ahead().unwrap();
            // Within the same tick of the clock that stamps files, and of the same size.
            if round % 2 == 0 {
                sandbox.write("a", &format!("later {round:04}"));
            }
            let freeze = sandbox.freeze_fully(Way::Snapshot);
            assert!(!freeze.unchanged);
            states.push((freeze.frozen, sandbox.read("a")));
        }
        for (frozen, wanted) in states {
            sandbox.rollback(&frozen);
            assert_eq!(sandbox.read("a"), wanted);
        }
        // What was frozen and is not kept is stored again.
        sandbox.write("a", "last");
        sandbox.files.freeze_ahead().unwrap();
        sandbox.freeze(Way::Snapshot);
        sandbox.files.forget_frozen();
        assert!(!sandbox.freeze_fully(Way::Snapshot).unchanged);
    });
}

#[test]
fn both_ways_can_be_mixed() {
    isolated(|dir| {
        let store = open(dir, StoreKind::Btrfs);
        let mut sandbox = Sandbox::create(&store, dir, "root", Base::directory(small_base(dir)));
        let mut states = Vec::new();
        for step in 0..40 {
            sandbox.write("file", &step.to_string());
            sandbox.write(&format!("file{step}"), &step.to_string());
            let way = if step * 7 % 5 < 2 {
                Way::Switch
            } else {
                Way::Snapshot
            };
            states.push((step, sandbox.freeze(way)));
            if step % 3 == 0 {
                sandbox.files.prepare().unwrap();
            }
            if step % 4 == 3 {
                let (wanted, state) = states[step * 5 % states.len()];
                sandbox.rollback(&state);
                assert_eq!(sandbox.read("file"), wanted.to_string());
            }
        }
        for (wanted, state) in &states {
            sandbox.rollback(state);
            assert_eq!(sandbox.read("file"), wanted.to_string());
            assert!(sandbox.has(&format!("file{wanted}")) && !sandbox.has(&format!("file{}", wanted + 1)));
        }
    });
}

#[test]
fn forks_do_not_see_each_other() {
    each(|dir, kind, way| {
        let store = open(dir, kind);
        let base = Base::directory(small_base(dir));
        let mut first = Sandbox::create(&store, dir, "one", base.clone());
        first.write("shared", "before");
        let state = first.freeze(way);
        let mut forks: Vec<_> = (0..3)
            .map(|n| Sandbox::fork(&store, dir, &format!("fork{n}"), base.clone(), &state))
            .collect();
        first.write("shared", "first");
        for (number, fork) in forks.iter_mut().enumerate() {
            assert_eq!(fork.read("shared"), "before");
            fork.write("shared", &number.to_string());
            let own = fork.freeze(way);
            fork.write("shared", "lost");
            fork.rollback(&own);
        }
        for (number, fork) in forks.iter().enumerate() {
            assert_eq!(fork.read("shared"), number.to_string());
        }
        assert_eq!(first.read("shared"), "first");
    });
}

#[test]
fn a_snapshot_keeps_inode_numbers_and_times() {
    use std::os::unix::fs::MetadataExt;
    isolated(|dir| {
        let store = open(dir, StoreKind::Btrfs);
        let mut sandbox = Sandbox::create(&store, dir, "root", Base::directory(small_base(dir)));
        fs::create_dir(sandbox.path("dir")).unwrap();
        sandbox.write("dir/frozen", "1");
        sandbox.write("dir/copied", "1");
        let _ = sandbox.freeze(Way::Switch);
        sandbox.write("dir/copied", "2");
        sandbox.write("dir/new", "2");
        sandbox.write("etc/passwd", "2");
        let names = [
            "dir",
            "dir/frozen",
            "dir/copied",
            "dir/new",
            "etc",
            "etc/passwd",
            "usr/bin/tool",
        ];
        let look = |sandbox: &Sandbox| {
            names.map(|name| {
                let metadata = sandbox.path(name).metadata().unwrap();
                let times = (
                    metadata.mtime(),
                    metadata.mtime_nsec(),
                    metadata.ctime(),
                    metadata.ctime_nsec(),
                );
                (name, metadata.ino(), times)
            })
        };
        let before = look(&sandbox);
        let one = sandbox.freeze(Way::Snapshot);
        assert_eq!(look(&sandbox), before);
        sandbox.write("dir/new", "3");
        fs::remove_file(sandbox.path("dir/copied")).unwrap();
        sandbox.rollback(&one);
        assert_eq!(look(&sandbox), before);
        // Also when the volume it was taken of is gone.
        store.settle();
        store.collect(store.horizon(), &[one]).unwrap();
        store.settle();
        sandbox.rollback(&one);
        let after = look(&sandbox);
        for (seen, wanted) in after.iter().zip(&before) {
            assert_eq!(seen.2, wanted.2, "{}", seen.0);
        }
    });
}
