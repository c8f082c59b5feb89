//! A file with several names stays one file, whatever is frozen and rolled back in between.

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
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

fn same(sandbox: &Sandbox, names: &[&str]) {
    let inode = |name: &&str| fs::symlink_metadata(sandbox.path(name)).unwrap();
    let first = inode(&names[0]);
    for name in names {
        let other = inode(name);
        assert_eq!((first.ino(), first.dev()), (other.ino(), other.dev()), "{name}");
        assert_eq!(other.nlink(), names.len() as u64, "{name}");
    }
}

#[test]
fn names_in_the_base_stay_together() {
    each(|dir, kind, way| {
        let base = small_base(dir);
        fs::hard_link(base.join("etc/passwd"), base.join("etc/passwd-")).unwrap();
        fs::hard_link(base.join("etc/passwd"), base.join("home/user/accounts")).unwrap();
        let store = open(dir, kind);
        let mut sandbox = Sandbox::create(&store, dir, "root", Base::directory(base));
        let names = ["etc/passwd", "etc/passwd-", "home/user/accounts"];
        same(&sandbox, &names);
        fs::rename(sandbox.path("home"), sandbox.path("house")).unwrap();
        sandbox.write("etc/passwd", "changed");
        let names = ["etc/passwd", "etc/passwd-", "house/user/accounts"];
        same(&sandbox, &names);
        let one = sandbox.freeze(way);
        same(&sandbox, &names);
        assert_eq!(sandbox.read("house/user/accounts"), "changed");
        sandbox.write("house/user/accounts", "again");
        fs::remove_file(sandbox.path("etc/passwd-")).unwrap();
        let two = sandbox.freeze(way);
        same(&sandbox, &["etc/passwd", "house/user/accounts"]);
        assert_eq!(sandbox.read("etc/passwd"), "again");
        sandbox.rollback(&one);
        same(&sandbox, &names);
        assert_eq!(sandbox.read("etc/passwd-"), "changed");
        sandbox.rollback(&two);
        same(&sandbox, &["etc/passwd", "house/user/accounts"]);
    });
}

#[test]
fn names_in_a_frozen_layer_stay_together() {
    each(|dir, kind, way| {
        let store = open(dir, kind);
        let mut sandbox = Sandbox::create(&store, dir, "root", Base::directory(small_base(dir)));
        fs::create_dir_all(sandbox.path("a/b/c")).unwrap();
        sandbox.write("a/one", "1");
        for name in ["a/b/two", "a/b/c/three"] {
            fs::hard_link(sandbox.path("a/one"), sandbox.path(name)).unwrap();
        }
        symlink("target", sandbox.path("a/link")).unwrap();
        fs::hard_link(sandbox.path("a/link"), sandbox.path("a/b/link")).unwrap();
        let one = sandbox.freeze(way);
        // Through two renamed directories, one frozen in between, and one name only removed.
        fs::rename(sandbox.path("a/b/c"), sandbox.path("c")).unwrap();
        let _ = sandbox.freeze(way);
        fs::rename(sandbox.path("a"), sandbox.path("z")).unwrap();
        fs::remove_file(sandbox.path("z/one")).unwrap();
        let two = sandbox.freeze(way);
        same(&sandbox, &["z/b/two", "c/three"]);
        same(&sandbox, &["z/link", "z/b/link"]);
        sandbox.write("c/three", "2");
        fs::rename(sandbox.path("z/link"), sandbox.path("link")).unwrap();
        let three = sandbox.freeze(way);
        assert_eq!(sandbox.read("z/b/two"), "2");
        same(&sandbox, &["z/b/two", "c/three"]);
        same(&sandbox, &["link", "z/b/link"]);
        sandbox.rollback(&two);
        assert_eq!(sandbox.read("z/b/two"), "1");
        same(&sandbox, &["z/b/two", "c/three"]);
        sandbox.rollback(&three);
        assert_eq!(sandbox.read("z/b/two"), "2");
        sandbox.rollback(&one);
        same(&sandbox, &["a/one", "a/b/two", "a/b/c/three"]);
    });
}
