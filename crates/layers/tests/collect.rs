//! Rubbish goes, everything needed stays, also over a restart.

mod support;

use std::fs;
use std::path::Path;

use deltabox_layers::{Base, Collected, Error, Store, StoreKind, StoreOptions, Way};
use support::{STORES, Sandbox, isolated, open, small_base};

fn each(test: impl Fn(&Path, StoreKind, Way) + Send + Copy + 'static) {
    for (kind, ways) in STORES {
        for way in ways {
            isolated(move |dir| test(dir, kind, *way));
        }
    }
}

#[test]
fn states_survive_a_restart_and_rubbish_does_not() {
    each(|dir, kind, way| {
        let base = Base::directory(small_base(dir));
        let store = open(dir, kind);
        let mut sandbox = Sandbox::create(&store, dir, "one", base.clone());
        let mut states = Vec::new();
        for step in 0..10 {
            sandbox.write("file", &step.to_string());
            sandbox.write(&format!("file{step}"), "x");
            states.push(sandbox.freeze(way));
        }
        sandbox.write("file", "live");
        store.sync().unwrap();
        let text = serde_json::to_string(&states).unwrap();
        drop(sandbox);
        drop(store);
        // As after a SIGKILL: what was live is not known to anybody.
        let store = open(dir, kind);
        let states: Vec<deltabox_layers::Frozen> = serde_json::from_str(&text).unwrap();
        let keep = [states[3], states[5]];
        let collected = store.collect(store.horizon(), &keep).unwrap();
        assert_ne!(collected, Collected::default());
        store.settle();
        assert_eq!(
            store.collect(store.horizon(), &keep).unwrap(),
            Collected::default()
        );
        for (step, state) in [(3, keep[0]), (5, keep[1])] {
            assert!(store.contains(&state).unwrap());
            let fork = Sandbox::fork(&store, dir, &format!("fork{step}"), base.clone(), &state);
            assert_eq!(fork.read("file"), step.to_string());
            assert!(fork.has(&format!("file{step}")) && !fork.has(&format!("file{}", step + 1)));
        }
        // The forks, and with them their claims, are gone again.
        store.settle();
        store.collect(store.horizon(), &[]).unwrap();
        store.settle();
        assert!(!store.contains(&keep[0]).unwrap());
        assert!(matches!(store.view(&base, &keep[0]), Err(Error::Missing(_))));
        let left = fs::read_dir(store.root().join("volumes")).unwrap().count();
        assert_eq!(left, 0, "no volume is left");
    });
}

#[test]
fn what_is_mounted_stays() {
    each(|dir, kind, way| {
        let base = Base::directory(small_base(dir));
        let store = open(dir, kind);
        let mut sandbox = Sandbox::create(&store, dir, "one", base.clone());
        for step in 0..12 {
            sandbox.write(&format!("file{step}"), "x");
            let _ = sandbox.freeze(way);
            sandbox.files.prepare().unwrap();
            store.collect(store.horizon(), &[sandbox.files.last()]).unwrap();
            store.settle();
            if step == 6 {
                sandbox.files.squash_job().run().unwrap();
            }
        }
        store.collect(store.horizon(), &[]).unwrap();
        store.settle();
        for step in 0..12 {
            assert_eq!(sandbox.read(&format!("file{step}")), "x");
        }
        // What is live can still be frozen when all states before are gone.
        sandbox.write("late", "x");
        let late = sandbox.freeze(way);
        sandbox.write("later", "x");
        sandbox.rollback(&late);
        assert!(sandbox.has("late") && sandbox.has("file0") && !sandbox.has("later"));
    });
}

#[test]
fn one_daemon_at_a_time() {
    isolated(|dir| {
        let store = open(dir, StoreKind::Directory);
        let options = StoreOptions {
            dir: dir.join("store"),
            kind: StoreKind::Directory,
            image_size: 0,
            bases: Vec::new(),
        };
        assert!(matches!(Store::open(options.clone()), Err(Error::StoreBusy(_))));
        drop(store);
        open(dir, StoreKind::Directory);
    });
}

#[test]
fn a_damaged_image_is_refused() {
    isolated(|dir| {
        drop(open(dir, StoreKind::Btrfs));
        let image = dir.join("store/store.img");
        let options = StoreOptions {
            dir: dir.join("store"),
            kind: StoreKind::Auto,
            image_size: 0,
            bases: Vec::new(),
        };
        // All copies of the superblock that fit: at 64 KB and 64 MB.
        use std::os::unix::fs::FileExt;
        let file = fs::OpenOptions::new().write(true).open(&image).unwrap();
        for (at, length) in [(0x10100, 3000), (0x400_0100, 3000)] {
            file.write_all_at(&vec![0x5a; length], at).unwrap();
        }
        let error = Store::open(options.clone()).unwrap_err();
        assert!(matches!(error, Error::ImageDamaged { .. }), "{error}");
        file.write_all_at(&[0; 4096], 0x10000).unwrap();
        let error = Store::open(options).unwrap_err();
        assert!(
            error.to_string().contains("not that of a known filesystem"),
            "{error}"
        );
    });
}
