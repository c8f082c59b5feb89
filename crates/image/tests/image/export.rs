//! What is exported comes back as it was.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use deltabox_image::{
    Compression, Content, Entry, Error, ExportOptions, ImageConfig, ImportOptions, Kind, export,
    export_rootfs, import, import_flat, walk,
};
use proptest::prelude::*;
use rustix::fs::{CWD, FileType, XattrFlags};

use crate::common::*;

/// A layer with everything a layer can hold.
fn full_layer(root: &Path) {
    let sh = |path: &str| root.join(path);
    fs::create_dir_all(sh("d/inner")).unwrap();
    fs::write(sh("d/file"), vec![3; 70_000]).unwrap();
    fs::hard_link(sh("d/file"), sh("d/inner/other name")).unwrap();
    fs::write(sh("empty"), b"").unwrap();
    fs::write(sh("umläut \n newline"), b"x").unwrap();
    fs::write(sh("su"), b"x").unwrap();
    rustix::fs::chownat(
        CWD,
        sh("su"),
        Some(rustix::fs::Uid::from_raw(5)),
        Some(rustix::fs::Gid::from_raw(4_000_000)),
        rustix::fs::AtFlags::empty(),
    )
    .unwrap();
    rustix::fs::chmodat(CWD, sh("su"), 0o6751.into(), rustix::fs::AtFlags::empty()).unwrap();
    std::os::unix::fs::symlink("x".repeat(300), sh("link")).unwrap();
    let node = |path: &str, kind, dev| rustix::fs::mknodat(CWD, sh(path), kind, 0o640.into(), dev).unwrap();
    node("fifo", FileType::Fifo, 0);
    node("socket", FileType::Socket, 0);
    node("null", FileType::CharacterDevice, rustix::fs::makedev(1, 3));
    node("block", FileType::BlockDevice, rustix::fs::makedev(259, 300_000));
    node("d/gone", FileType::CharacterDevice, 0);
    fs::create_dir(sh("opaque")).unwrap();
    let set = |path: &str, name: &str, value: &[u8]| {
        rustix::fs::lsetxattr(sh(path), name, value, XattrFlags::empty()).unwrap()
    };
    set("opaque", "trusted.overlay.opaque", b"y");
    set("d/file", "user.big", &[9; 900]);
    set("d/file", "user.text", b"a=b\nc\0d");
    set("link", "trusted.on-link", b"1");
    set("d", "trusted.custom", b"");
    let acl = [
        &2u32.to_le_bytes()[..],
        &[1, 0, 7, 0, 255, 255, 255, 255],
        &[2, 0, 6, 0, 232, 3, 0, 0],
        &[4, 0, 5, 0, 255, 255, 255, 255],
        &[16, 0, 7, 0, 255, 255, 255, 255],
        &[32, 0, 0, 0, 255, 255, 255, 255],
    ]
    .concat();
    set("d/inner", "system.posix_acl_default", &acl);
    set("empty", "system.posix_acl_access", &acl);
    let sparse = fs::File::create(sh("sparse")).unwrap();
    sparse.write_all_at(b"start", 0).unwrap();
    sparse.write_all_at(b"middle", 5_000_000).unwrap();
    sparse.set_len(20_000_000).unwrap();
    fs::File::create(sh("hole")).unwrap().set_len(1 << 26).unwrap();
    let deep = format!("{}/{}", "p".repeat(200), "q".repeat(200));
    fs::create_dir_all(sh(&deep)).unwrap();
    fs::write(sh(&format!("{deep}/leaf")), b"leaf").unwrap();
    times(root, 1_700_000_000_123_456_789);
}

/// Different times everywhere, with nanoseconds; one before 1970.
fn times(root: &Path, mut ns: i128) {
    fn visit(path: &Path, ns: &mut i128) {
        if path.is_dir() && !path.is_symlink() {
            for child in fs::read_dir(path).unwrap() {
                visit(&child.unwrap().path(), ns);
            }
        }
        *ns += 1_000_000_007;
        let time = rustix::fs::Timespec {
            tv_sec: (*ns / 1_000_000_000) as i64,
            tv_nsec: (*ns % 1_000_000_000) as i64,
        };
        let times = rustix::fs::Timestamps {
            last_access: time,
            last_modification: time,
        };
        rustix::fs::utimensat(CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
    visit(root, &mut ns);
}

#[test]
fn what_is_exported_is_imported_again() {
    let dir = tempfile::tempdir().unwrap();
    let (tree, base) = (dir.path().join("tree"), dir.path().join("base"));
    fs::create_dir_all(&tree).unwrap();
    fs::create_dir_all(&base).unwrap();
    full_layer(&tree);
    fs::write(base.join("from-base"), b"1").unwrap();
    times(&base, 1_500_000_000_000_000_001);
    let config = ImageConfig {
        env: vec!["A=1".into(), "B=\"quoted\"".into()],
        workdir: "/w".into(),
        user: "7".into(),
        entrypoint: vec!["/e".into()],
        cmd: vec!["c".into(), "d e".into()],
        labels: [("l".to_owned(), "m".to_owned())].into(),
    };
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let options = ExportOptions {
            config: config.clone(),
            compression,
            name: Some("work:1".into()),
            ..ExportOptions::default()
        };
        let out = dir.path().join("out.tar");
        let exported = export(walk(&tree).unwrap(), std::slice::from_ref(&base), &out, &options).unwrap();
        assert_eq!(exported.bytes, fs::metadata(&out).unwrap().len());
        let again = dir.path().join("again.tar");
        export(
            walk(&tree).unwrap(),
            std::slice::from_ref(&base),
            &again,
            &options,
        )
        .unwrap();
        assert!(
            fs::read(&out).unwrap() == fs::read(&again).unwrap(),
            "the output is not deterministic"
        );
        let keep = ImportOptions {
            keep_devices: true,
            ..ImportOptions::default()
        };
        let dest = dir.path().join(format!("{compression:?}"));
        let image = import(&source(&out), &dest, &keep).unwrap();
        assert!(image.warnings.is_empty(), "{:?}", image.warnings);
        assert_eq!(image.config, config);
        assert_eq!(image.digest, exported.digest);
        assert_eq!(snapshot(&image.layers[0]), snapshot(&tree));
        assert_eq!(snapshot(&image.layers[1]), snapshot(&base));
        let named = deltabox_image::ImageSource::parse(&format!("{}:work:1", out.display())).unwrap();
        assert_eq!(import(&named, &dest, &keep).unwrap().reused, 2);
    }
    let expected: Vec<String> = ["Gzip", "None", "Zstd", "again.tar", "base", "out.tar", "tree"]
        .map(String::from)
        .into();
    assert_eq!(names(dir.path()), expected);
}

/// The way back through another reader than ours.
#[test]
fn gnu_tar_reads_a_rootfs() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    full_layer(&tree);
    for odd in ["d/gone", "socket", "opaque"] {
        // A whiteout and an opaque mark have no place in a root, a socket none in the tar of others.
        let path = tree.join(odd);
        if path.is_dir() {
            fs::remove_dir(path).unwrap()
        } else {
            fs::remove_file(path).unwrap()
        }
    }
    times(&tree, 1_700_000_000_123_456_789);
    let tar = dir.path().join("root.tar");
    export_rootfs(walk(&tree).unwrap(), fs::File::create(&tar).unwrap()).unwrap();
    let out = dir.path().join("out");
    fs::create_dir(&out).unwrap();
    let output = std::process::Command::new("tar")
        .args([
            "--numeric-owner",
            "--xattrs",
            "--xattrs-include=*",
            "--same-owner",
            "-C",
        ])
        .arg(&out)
        .arg("-xpf")
        .arg(&tar)
        .output()
        .expect("GNU tar is needed for this test");
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(snapshot(&out), snapshot(&tree));
}

fn file(path: &str) -> Entry {
    let content = Content::dense(1, &b"x"[..]);
    Entry {
        path: path.into(),
        kind: Kind::File(content),
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime_ns: 0,
        xattrs: vec![],
    }
}

#[test]
fn what_cannot_be_written_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.tar");
    let refused = |entries: Vec<Entry>, why: &str| {
        let error = export(entries.into_iter().map(Ok), &[], &out, &ExportOptions::default()).unwrap_err();
        let text = error.to_string();
        assert!(
            matches!(error, Error::Entry { .. }) && text.contains(why),
            "{text}"
        );
        assert!(names(dir.path()).is_empty());
    };
    refused(vec![file("a/.wh.b")], ".wh.");
    refused(vec![file("../x")], "not relative");
    refused(vec![file("/x")], "not relative");
    refused(vec![file("")], "root must be a directory");
    refused(vec![file("b"), file("a")], "depth-first");
    refused(vec![file("a"), file("a")], "depth-first");
    refused(
        vec![Entry {
            kind: Kind::HardLink(b"../a".into()),
            ..file("b")
        }],
        "hard link",
    );
    refused(
        vec![Entry {
            kind: Kind::File(Content::dense(5, &b"abc"[..])),
            ..file("b")
        }],
        "changed while being read",
    );
    refused(
        vec![Entry {
            xattrs: vec![(b"trusted.overlay.redirect".into(), b"/x".into())],
            ..file("b")
        }],
        "overlayfs's own",
    );
    let failing = [Err(Error::Source("layer is gone".into()))];
    let error = export(failing, &[], &out, &ExportOptions::default()).unwrap_err();
    assert!(error.to_string().contains("layer is gone"));
    assert!(names(dir.path()).is_empty());
}

#[derive(Debug, Clone)]
struct Node {
    name: String,
    kind: u8,
    mode: u32,
    owner: u32,
    ns: i64,
    size: u64,
    holes: Vec<(u64, u8)>,
    xattr: Option<(String, Vec<u8>)>,
}

fn node() -> impl Strategy<Value = Node> {
    let name = prop_oneof![
        "[a-c]{1,2}(/[a-c]{1,2}){0,3}",
        "[a-z]{90,110}/[a-z]{40,60}/[a-z]{90,120}",
        "[ -.0-~é\n]{1,40}"
    ];
    let xattr = proptest::option::of(("[a-z]{1,100}", proptest::collection::vec(any::<u8>(), 0..300)));
    let holes = proptest::collection::vec((0u64..2_000_000, any::<u8>()), 0..6);
    (
        name,
        0u8..7,
        0u32..0o10000,
        0u32..u32::MAX,
        any::<i64>(),
        0u64..3_000_000,
        holes,
        xattr,
    )
        .prop_map(|(name, kind, mode, owner, ns, size, holes, xattr)| Node {
            name,
            kind,
            mode,
            owner,
            ns,
            size,
            holes,
            xattr,
        })
}

/// Makes what can be made of it; names may collide, which is part of the game.
fn build(root: &Path, nodes: &[Node]) {
    let mut files = vec![];
    for node in nodes {
        let parts: Vec<&str> = node
            .name
            .split('/')
            .filter(|p| !["", ".", ".."].contains(p) && !p.starts_with(".wh."))
            .collect();
        let path = root.join(parts.join("/"));
        if parts.is_empty()
            || fs::create_dir_all(path.parent().unwrap()).is_err()
            || path.symlink_metadata().is_ok()
        {
            continue;
        }
        let make = |kind, dev| rustix::fs::mknodat(CWD, &path, kind, 0o600.into(), dev).is_ok();
        let made = match node.kind {
            0 | 1 => fs::File::create(&path).is_ok_and(|f| {
                for (at, byte) in node.holes.iter().filter(|_| node.kind == 1) {
                    f.write_all_at(&[*byte; 5000], *at).unwrap();
                }
                files.push(path.clone());
                f.set_len(node.size).is_ok()
            }),
            2 => fs::create_dir(&path).is_ok(),
            3 => std::os::unix::fs::symlink(&node.name, &path).is_ok(),
            4 => files
                .last()
                .is_some_and(|target| fs::hard_link(target, &path).is_ok()),
            5 => make(FileType::Fifo, 0),
            _ => make(FileType::Socket, 0),
        };
        if !made {
            continue;
        }
        let owner = Some(rustix::fs::Uid::from_raw(node.owner));
        let group = Some(rustix::fs::Gid::from_raw(node.owner / 3));
        rustix::fs::chownat(CWD, &path, owner, group, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
        if node.kind != 3 {
            rustix::fs::chmodat(CWD, &path, node.mode.into(), rustix::fs::AtFlags::empty()).unwrap();
            if let Some((name, value)) = node.xattr.as_ref().filter(|_| node.kind < 3) {
                rustix::fs::lsetxattr(&path, format!("user.{name}"), value, XattrFlags::empty()).unwrap();
            }
        }
        let time = rustix::fs::Timespec {
            tv_sec: node.ns / 2_000_000_000,
            tv_nsec: (node.ns % 1_000_000_000).abs(),
        };
        let times = rustix::fs::Timestamps {
            last_access: time,
            last_modification: time,
        };
        rustix::fs::utimensat(CWD, &path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_trees_come_back(nodes in proptest::collection::vec(node(), 0..25)) {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir(&tree).unwrap();
        build(&tree, &nodes);
        let out = dir.path().join("out.tar");
        let options = ExportOptions { compression: Compression::None, ..ExportOptions::default() };
        export(walk(&tree).unwrap(), &[], &out, &options).unwrap();
        let image = import(&source(&out), &dir.path().join("layers"), &ImportOptions::default()).unwrap();
        prop_assert_eq!(snapshot(&image.layers[0]), snapshot(&tree));
        import_flat(&source(&out), &dir.path().join("flat"), &ImportOptions::default()).unwrap();
        prop_assert_eq!(snapshot(&dir.path().join("flat")), snapshot(&tree));
    }
}
