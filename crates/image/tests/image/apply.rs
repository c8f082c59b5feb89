//! Changes carried out on a directory of the host.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use deltabox_image::{Action, ApplyOptions, Content, Entry, Error, Kind, PlannedChange, apply, walk};
use rustix::fs::{CWD, FileType, XattrFlags};

use crate::common::*;

fn entry(path: &str, kind: Kind) -> deltabox_image::Result<Entry> {
    Ok(Entry {
        path: path.into(),
        kind,
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime_ns: 1_000_000_001,
        xattrs: vec![],
    })
}

fn file(text: &'static str) -> Kind {
    Kind::File(Content::dense(text.len() as u64, text.as_bytes()))
}

fn dry() -> ApplyOptions {
    ApplyOptions {
        dry_run: true,
        ..ApplyOptions::default()
    }
}

fn actions(changes: &[PlannedChange]) -> Vec<(String, Action)> {
    changes
        .iter()
        .map(|c| (String::from_utf8(c.path.clone()).unwrap(), c.action))
        .collect()
}

/// A host directory and a layer over it that changes a bit of everything.
fn scene(dir: &Path) {
    let (host, layer) = (dir.join("host"), dir.join("layer"));
    fs::create_dir_all(host.join("src/old")).unwrap();
    fs::create_dir_all(host.join("wipe/sub")).unwrap();
    fs::write(host.join("src/main.py"), b"v1").unwrap();
    fs::write(host.join("src/gone.py"), b"x").unwrap();
    fs::write(host.join("wipe/sub/deep"), b"x").unwrap();
    fs::write(host.join("wipe/kept-name"), b"before").unwrap();
    fs::write(host.join("becomes-dir"), b"x").unwrap();
    fs::write(host.join("untouched"), b"same").unwrap();
    fs::create_dir_all(layer.join("src")).unwrap();
    fs::create_dir_all(layer.join("wipe")).unwrap();
    fs::create_dir_all(layer.join("becomes-dir/sub")).unwrap();
    fs::write(layer.join("src/main.py"), b"v2").unwrap();
    fs::write(layer.join("src/new.py"), b"n").unwrap();
    fs::hard_link(layer.join("src/new.py"), layer.join("src/twin.py")).unwrap();
    fs::write(layer.join("src/old"), b"was a directory").unwrap();
    fs::write(layer.join("wipe/kept-name"), b"after").unwrap();
    fs::write(layer.join("becomes-dir/sub/f"), b"1").unwrap();
    symlink("src/main.py", layer.join("link")).unwrap();
    let whiteout = |path: &str| {
        rustix::fs::mknodat(CWD, layer.join(path), FileType::CharacterDevice, 0.into(), 0).unwrap()
    };
    whiteout("src/gone.py");
    whiteout("was-never-there");
    rustix::fs::lsetxattr(
        layer.join("wipe"),
        "trusted.overlay.opaque",
        b"y",
        XattrFlags::empty(),
    )
    .unwrap();
    rustix::fs::mknodat(CWD, layer.join("pipe"), FileType::Fifo, 0o600.into(), 0).unwrap();
    rustix::fs::mknodat(
        CWD,
        layer.join("zero"),
        FileType::CharacterDevice,
        0o600.into(),
        rustix::fs::makedev(1, 5),
    )
    .unwrap();
}

#[test]
fn the_preview_is_what_happens() {
    let dir = tempfile::tempdir().unwrap();
    scene(dir.path());
    let (host, layer) = (dir.path().join("host"), dir.path().join("layer"));
    let before = snapshot(&host);
    let planned = apply(walk(&layer).unwrap(), &host, &dry()).unwrap();
    assert_eq!(snapshot(&host), before, "a preview changed something");
    let done = apply(walk(&layer).unwrap(), &host, &ApplyOptions::default()).unwrap();
    assert_eq!(planned, done);
    let expected = [
        ("becomes-dir", Action::Replace),
        ("becomes-dir/sub", Action::Create),
        ("becomes-dir/sub/f", Action::Create),
        ("link", Action::Create),
        ("pipe", Action::Create),
        ("src/gone.py", Action::Delete),
        ("src/main.py", Action::Modify),
        ("src/new.py", Action::Create),
        ("src/old", Action::Replace),
        ("src/twin.py", Action::Create),
        ("wipe/kept-name", Action::Delete),
        ("wipe/sub", Action::Delete),
        ("wipe/kept-name", Action::Create),
        ("zero", Action::Skip),
    ];
    assert_eq!(
        actions(&done),
        expected.map(|(path, action)| (path.to_owned(), action))
    );
    assert_eq!(
        names(&host),
        ["becomes-dir", "link", "pipe", "src", "untouched", "wipe"]
    );
    assert_eq!(names(&host.join("src")), ["main.py", "new.py", "old", "twin.py"]);
    assert_eq!(fs::read(host.join("src/main.py")).unwrap(), b"v2");
    assert_eq!(fs::read(host.join("wipe/kept-name")).unwrap(), b"after");
    assert_eq!(names(&host.join("wipe")), ["kept-name"]);
    let ino = |path: &str| fs::metadata(host.join(path)).unwrap().ino();
    assert_eq!(ino("src/new.py"), ino("src/twin.py"));
    // Once more changes nothing but what is modified in place.
    let again = apply(walk(&layer).unwrap(), &host, &ApplyOptions::default()).unwrap();
    assert!(again.iter().all(|c| c.action != Action::Replace), "{again:?}");
}

#[test]
fn links_of_the_target_are_never_followed() {
    let dir = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), b"mine").unwrap();
    fs::create_dir(outside.path().join("inner")).unwrap();
    let before = snapshot(outside.path());
    let host = dir.path();
    symlink(outside.path(), host.join("link")).unwrap();
    symlink(outside.path().join("secret"), host.join("file")).unwrap();
    let refused = |entries: Vec<deltabox_image::Result<Entry>>, options: &ApplyOptions| {
        let error = apply(entries, host, options).unwrap_err();
        assert!(
            matches!(error, Error::Entry { .. }) && error.to_string().contains("symbolic link"),
            "{error}"
        );
        assert_eq!(names(host), ["file", "link"]);
    };
    for options in [dry(), ApplyOptions::default()] {
        refused(vec![entry("link/secret", file("evil"))], &options);
        refused(vec![entry("link/inner/new", file("evil"))], &options);
        refused(vec![entry("link/secret", Kind::Whiteout)], &options);
        refused(vec![entry("link/inner", Kind::OpaqueDir)], &options);
        refused(vec![entry("link/inner", Kind::Dir)], &options);
    }
    refused(
        vec![entry("a", Kind::HardLink(b"link/secret".into()))],
        &ApplyOptions::default(),
    );
    for bad in ["../x", "/etc/x", "a/../../x", "a//b", "."] {
        let error = apply([entry(bad, file("evil"))], host, &ApplyOptions::default()).unwrap_err();
        assert!(error.to_string().contains("no path inside"), "{error}");
    }
    // A file or directory takes the place of a link; what the link points to is untouched.
    let both = || {
        [
            entry("file", file("new")),
            entry("link", Kind::Dir),
            entry("link/secret", file("new")),
        ]
    };
    let planned = apply(both(), host, &dry()).unwrap();
    assert_eq!(apply(both(), host, &ApplyOptions::default()).unwrap(), planned);
    assert_eq!(fs::read(host.join("link/secret")).unwrap(), b"new");
    assert!(!host.join("file").is_symlink() && !host.join("link").is_symlink());
    // Removing a link removes the link.
    symlink(outside.path(), host.join("again")).unwrap();
    apply([entry("again", Kind::Whiteout)], host, &ApplyOptions::default()).unwrap();
    assert_eq!(snapshot(outside.path()), before);
}

#[test]
fn privileges_are_not_carried_to_the_host_unasked() {
    let dir = tempfile::tempdir().unwrap();
    let make = || {
        let mut e = entry("su", file("x")).unwrap();
        e.mode = 0o6755;
        e.uid = 7;
        e.xattrs = vec![(b"user.k".to_vec(), b"v".to_vec())];
        [Ok(e)]
    };
    let done = apply(make(), dir.path(), &ApplyOptions::default()).unwrap();
    assert!(done[0].note.unwrap().contains("set-uid"));
    let meta = fs::metadata(dir.path().join("su")).unwrap();
    assert_eq!(
        (meta.mode() & 0o7777, meta.uid(), meta.mtime_nsec()),
        (0o755, 7, 1)
    );
    let options = ApplyOptions {
        keep_privileges: true,
        owner: Some((8, 9)),
        ..ApplyOptions::default()
    };
    assert_eq!(apply(make(), dir.path(), &options).unwrap()[0].note, None);
    let meta = fs::metadata(dir.path().join("su")).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o6755, 8, 9));
}

#[test]
fn a_failure_leaves_no_temporary_names() {
    let dir = tempfile::tempdir().unwrap();
    let short = Kind::File(Content::dense(10, &b"abc"[..]));
    let error = apply([entry("f", short)], dir.path(), &ApplyOptions::default()).unwrap_err();
    assert!(matches!(error, Error::Entry { .. }));
    assert!(names(dir.path()).is_empty());
}
