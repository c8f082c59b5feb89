//! Where a store is made, and what it does when it is full.

mod support;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use deltabox_layers::{Base, Error, FileState, IdMap, Mask, MaskEntry, Store, StoreKind, StoreOptions, Way};
use support::{Sandbox, isolated, open, small_base};

fn auto(dir: &Path, bases: &[&Path]) -> Store {
    let bases = bases.iter().map(|base| base.to_path_buf()).collect();
    let options = StoreOptions {
        dir: dir.to_path_buf(),
        kind: StoreKind::Auto,
        image_size: 1 << 30,
        bases,
    };
    Store::open(options).unwrap()
}

#[test]
fn the_state_directory_is_used_where_it_can_snapshot() {
    isolated(|dir| {
        let outer = open(dir, StoreKind::Btrfs);
        let base = small_base(dir);
        let inside = auto(&outer.root().join("state"), &[&base]);
        assert!(!inside.features().image && inside.features().snapshots && inside.features().lost.is_empty());
        let mut sandbox = Sandbox::create(&inside, dir, "root", Base::directory(&base));
        sandbox.write("new", "1");
        let one = sandbox.freeze(Way::Snapshot);
        sandbox.write("new", "2");
        sandbox.rollback(&one);
        assert_eq!(sandbox.read("new"), "1");

        // A base on the same filesystem could not be told from the layers by inode number.
        let close = outer.root().join("base");
        fs::create_dir(&close).unwrap();
        let refused = FileState::create(&inside, Base::directory(&close), &IdMap::IDENTITY).unwrap_err();
        assert!(matches!(refused, Error::BaseOnStore(_)), "{refused}");
        let apart = auto(&outer.root().join("other"), &[&close]);
        assert!(apart.features().image && apart.features().snapshots);
        FileState::create(&apart, Base::directory(&close), &IdMap::IDENTITY).unwrap();
    });
}

#[test]
fn a_store_is_opened_as_what_it_is() {
    isolated(|dir| {
        let base = Base::directory(small_base(dir));
        let store = open(dir, StoreKind::Xfs);
        assert_eq!(store.features().filesystem, "xfs");
        let mut sandbox = Sandbox::create(&store, dir, "root", base.clone());
        sandbox.write("new", "1");
        let one = sandbox.freeze(Way::Switch);
        let refused = {
            sandbox.write("new", "2");
            sandbox.files.freeze(Way::Snapshot).unwrap_err()
        };
        assert!(matches!(refused, Error::NoSnapshots(_)), "{refused}");
        drop(sandbox);
        drop(store);
        let store = auto(&dir.join("store"), &[]);
        assert_eq!(store.features().filesystem, "xfs");
        assert_eq!(Sandbox::fork(&store, dir, "again", base, &one).read("new"), "1");
    });
}

#[test]
fn the_hosts_own_root_is_a_base() {
    isolated(|dir| {
        let store = auto(&dir.join("store"), &[Path::new("/")]);
        assert!(store.features().image);
        let hide = MaskEntry::Directory {
            path: "/root".into(),
            mode: 0o700,
            uid: 0,
            gid: 0,
        };
        let base = Base {
            layers: vec!["/".into()],
            mask: Mask { entries: vec![hide] },
        };
        let mut sandbox = Sandbox::create(&store, dir, "root", base);
        assert!(sandbox.has("usr/bin/env"));
        assert_eq!(fs::read_dir(sandbox.path("root")).unwrap().count(), 0);
        sandbox.write("usr/bin/env", "changed");
        let one = sandbox.freeze(Way::Switch);
        fs::remove_dir_all(sandbox.path("usr/bin")).unwrap();
        sandbox.rollback(&one);
        assert_eq!(sandbox.read("usr/bin/env"), "changed");
        assert_ne!(fs::read("/usr/bin/env").unwrap(), b"changed");
    });
}

#[test]
fn a_full_store_fails_the_new_state_only() {
    for (kind, way) in [
        (StoreKind::Btrfs, Way::Switch),
        (StoreKind::Btrfs, Way::Snapshot),
        (StoreKind::Xfs, Way::Switch),
        (StoreKind::Ext4, Way::Switch),
    ] {
        isolated(move |dir| full(dir, kind, way));
    }
}

fn full(dir: &Path, kind: StoreKind, way: Way) {
    let options = StoreOptions {
        dir: dir.join("store"),
        kind,
        image_size: 320 << 20,
        bases: Vec::new(),
    };
    let store = Store::open(options).unwrap();
    let mut sandbox = Sandbox::create(&store, dir, "root", Base::directory(small_base(dir)));
    sandbox.write("small", "one");
    let one = sandbox.freeze(way);
    store.sync().unwrap();
    // What is made ahead is there when nothing can be made any more.
    sandbox.files.prepare().unwrap();
    // Content first, then names, until neither fits.
    let mut large = fs::File::create(sandbox.path("large")).unwrap();
    while large
        .write_all(&vec![0x5a; 4 << 20])
        .and_then(|()| large.sync_data())
        .is_ok()
    {}
    let mut number = 0;
    while number < 200_000 && fs::write(sandbox.path(&format!("n{number}")), [0x5a; 900]).is_ok() {
        number += 1;
    }
    drop(large);
    let names = |sandbox: &Sandbox| fs::read_dir(&sandbox.root).unwrap().count();
    let before = names(&sandbox);
    // If it fits after all, it is whole.
    if let Err(error) = sandbox.try_freeze(way) {
        assert!(error.to_string().contains("space"), "{kind:?} {way:?}: {error}");
    }
    assert_eq!(
        names(&sandbox),
        before,
        "{kind:?} {way:?}: the sandbox sees what it saw"
    );
    assert_eq!(sandbox.read("small"), "one");
    fs::remove_file(sandbox.path("large")).unwrap();
    store.collect(store.horizon(), &[one]).unwrap();
    store.settle();
    store.flush().unwrap();
    sandbox.rollback(&one);
    assert_eq!(sandbox.read("small"), "one");
    assert!(!sandbox.has("large") && !sandbox.has("n0"));
    store.collect(store.horizon(), &[one]).unwrap();
    store.settle();
    // btrfs takes its time to give the space of what was removed to new metadata.
    let mut two = None;
    for _ in 0..600 {
        store.collect(store.horizon(), &[one]).unwrap();
        store.settle();
        two = fs::write(sandbox.path("small"), "two")
            .ok()
            .and_then(|()| sandbox.try_freeze(way).ok());
        if two.is_some() {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let two = two.expect("there is space again").frozen;
    sandbox.rollback(&one);
    sandbox.rollback(&two);
    assert_eq!(sandbox.read("small"), "two");
}
