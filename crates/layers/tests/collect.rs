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

/// Bytes of the store that states need, each counted once.
fn taken(store: &Store, states: &[deltabox_layers::Frozen]) -> u64 {
    let mut ranges: Vec<_> = states
        .iter()
        .flat_map(|state| store.places(state).unwrap())
        .collect();
    ranges.sort_by_key(|range| range.start);
    let (mut bytes, mut end) = (0, 0);
    for range in ranges {
        bytes += range.end.saturating_sub(range.start.max(end));
        end = end.max(range.end);
    }
    bytes
}

#[test]
fn what_a_removed_state_hides_goes_and_the_others_stay_what_they_were() {
    const BIG: u64 = 4 << 20;
    each(|dir, kind, way| {
        let base = Base::directory(small_base(dir));
        let store = open(dir, kind);
        let mut sandbox = Sandbox::create(&store, dir, "one", base.clone());
        let mut random = support::rng::Rng::new(7);
        let states: Vec<_> = (0..6)
            .map(|step| {
                let content: String = (0..BIG / 16).map(|_| format!("{:016x}", random.next())).collect();
                sandbox.write("big", &content);
                sandbox.write(&format!("file{step}"), &step.to_string());
                if step > 0 {
                    fs::remove_file(sandbox.path(&format!("file{}", step - 1))).unwrap();
                }
                sandbox.freeze(way)
            })
            .collect();
        drop(sandbox);
        store.settle();
        assert!((6 * BIG..6 * BIG + BIG / 2).contains(&taken(&store, &states)));
        // In the middle, at the beginning, and at the end.
        for kept in [&[0, 2, 4, 5][..], &[2, 4, 5], &[2, 4]] {
            let kept: Vec<_> = kept.iter().map(|step| states[*step]).collect();
            store.collect(store.horizon(), &kept).unwrap();
            // A snapshot hides nothing of another one, and what lies at an end nothing of what is below.
            if way == Way::Switch && kept.len() > 2 {
                let hidden = taken(&store, &kept);
                assert!(
                    hidden > kept.len() as u64 * BIG + BIG / 2,
                    "{hidden} for {kept:?}"
                );
                assert!(store.compact(&kept, true).unwrap() > 0);
                store.collect(store.horizon(), &kept).unwrap();
            }
            assert_eq!(
                store.compact(&kept, true).unwrap(),
                0,
                "all that can be merged is"
            );
            let bytes = taken(&store, &kept);
            let wanted = kept.len() as u64 * BIG;
            assert!(
                (wanted..wanted + BIG / 2).contains(&bytes),
                "{bytes} for {kept:?}"
            );
            for state in &kept {
                let step = states.iter().position(|other| other == state).unwrap();
                let name = format!("fork{}of{}", step, kept.len());
                let fork = Sandbox::fork(&store, dir, &name, base.clone(), state);
                assert_eq!(fork.read(&format!("file{step}")), step.to_string());
                assert!(step == 0 || !fork.has(&format!("file{}", step - 1)));
                drop(fork);
                store.settle();
            }
        }
    });
}
