//! What well-formed images become.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use deltabox_image::{Error, ImageSource, ImportOptions, import, import_flat};

use crate::common::*;

fn base() -> Vec<u8> {
    Tar::default()
        .dir("./")
        .dir("./bin/")
        .head(
            Head {
                path: b"bin/su",
                mode: 0o4755,
                uid: 0,
                ..Head::default()
            },
            3,
        )
        .data(b"su\n")
        .dir("etc/")
        .file("etc/passwd", b"root")
        .file("etc/gone", b"x")
        .dir("data/")
        .file("data/a", b"a")
        .file("data/b", b"b")
        .symlink("lib", "usr/lib")
        .dir("usr/")
        .dir("usr/lib/")
        .end()
}

fn upper() -> Vec<u8> {
    Tar::default()
        .dir("etc/")
        .file("etc/.wh.gone", b"")
        .file("etc/new", b"new")
        .dir("data/")
        .file("data/.wh..wh..opq", b"")
        .file("data/c", b"c")
        .end()
}

fn is_whiteout(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_char_device() && m.rdev() == 0)
}

fn opaque(path: &Path) -> Option<Vec<u8>> {
    let mut value = vec![0; 16];
    let n = rustix::fs::lgetxattr(path, "trusted.overlay.opaque", &mut value[..]).ok()?;
    value.truncate(n);
    Some(value)
}

#[test]
fn layers_become_overlayfs_directories() {
    let dir = tempfile::tempdir().unwrap();
    let source = image(dir.path(), &[base(), upper()]);
    let dest = dir.path().join("layers");
    let image = import(&source, &dest, &ImportOptions::default()).unwrap();
    assert_eq!(image.layers.len(), 2);
    let (top, bottom) = (&image.layers[0], &image.layers[1]);
    assert!(is_whiteout(&top.join("etc/gone")));
    assert_eq!(opaque(&top.join("data")).unwrap(), b"y");
    assert!(!top.join("data/.wh..wh..opq").exists() && !top.join("etc/.wh.gone").exists());
    assert_eq!(fs::read(top.join("etc/new")).unwrap(), b"new");
    let su = fs::metadata(bottom.join("bin/su")).unwrap();
    assert_eq!(su.mode() & 0o7777, 0o4755);
    assert_eq!(fs::metadata(bottom.join("bin")).unwrap().mtime(), 1_600_000_000);
    assert_eq!(image.config.env, ["PATH=/bin", "A=b c"]);
    assert_eq!(image.config.cmd, ["/bin/sh"]);
    assert_eq!(
        (image.config.workdir.as_str(), image.config.user.as_str()),
        ("/srv", "1000:1000")
    );
    assert!(image.config.entrypoint.is_empty());
    // The directories hold set-uid programs of the image: nobody else may reach them.
    assert_eq!(fs::metadata(&dest).unwrap().mode() & 0o777, 0o700);
}

#[test]
fn every_form_of_an_image_gives_the_same_layers() {
    let dir = tempfile::tempdir().unwrap();
    let (base, upper) = (base(), upper());
    let plain = [(base.clone(), base.clone()), (upper.clone(), upper.clone())];
    let packed = [(gzip(&base), base.clone()), (zstd(&upper), upper.clone())];
    let saved = docker_save(&[base.clone(), upper.clone()]);
    let mut archives = vec![
        write_tar(&dir.path().join("plain.tar"), &layout(&plain)),
        write_tar(&dir.path().join("packed.tar"), &layout(&packed)),
        write_tar(&dir.path().join("saved.tar"), &saved),
        write_dir(&dir.path().join("layout"), &layout(&packed)),
    ];
    for (name, pack) in [
        ("saved.tar.gz", gzip as fn(&[u8]) -> Vec<u8>),
        ("saved.tar.zst", zstd),
    ] {
        fs::write(
            dir.path().join(name),
            pack(&fs::read(dir.path().join("saved.tar")).unwrap()),
        )
        .unwrap();
        archives.push(source(&dir.path().join(name)));
    }
    let mut both = layout(&plain);
    both.extend(saved);
    archives.push(write_tar(&dir.path().join("both.tar"), &both));
    let mut snapshots = vec![];
    for (i, source) in archives.iter().enumerate() {
        let dest = dir.path().join(format!("layers-{i}"));
        let image = import(source, &dest, &ImportOptions::default()).unwrap();
        assert!(image.warnings.is_empty(), "{:?}", image.warnings);
        snapshots.push(
            image
                .layers
                .iter()
                .map(|l| (l.file_name().unwrap().to_owned(), snapshot(l)))
                .collect::<Vec<_>>(),
        );
        assert!(
            !names(&dest).iter().any(|n| n.starts_with('.')),
            "{:?}",
            names(&dest)
        );
    }
    assert!(snapshots.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn layers_are_shared_by_digest() {
    let dir = tempfile::tempdir().unwrap();
    let dest = dir.path().join("layers");
    let source = image(dir.path(), &[base(), upper()]);
    let first = import(&source, &dest, &ImportOptions::default()).unwrap();
    let inode = fs::metadata(first.layers[1].join("etc/passwd")).unwrap().ino();
    let other = dir.path().join("other");
    fs::create_dir(&other).unwrap();
    let second = import(
        &image(&other, &[base(), Tar::default().file("x", b"x").end()]),
        &dest,
        &ImportOptions::default(),
    )
    .unwrap();
    assert_eq!((first.reused, second.reused), (0, 1));
    assert_eq!(first.layers[1], second.layers[1]);
    assert_eq!(
        fs::metadata(second.layers[1].join("etc/passwd")).unwrap().ino(),
        inode
    );
}

#[test]
fn a_repeated_layer_is_one_directory() {
    let dir = tempfile::tempdir().unwrap();
    let empty = Tar::default().end();
    let source = image(
        dir.path(),
        &[empty.clone(), base(), empty.clone(), upper(), empty],
    );
    let image = import(&source, &dir.path().join("layers"), &ImportOptions::default()).unwrap();
    assert_eq!(image.layers.len(), 3);
    let unique: std::collections::HashSet<_> = image.layers.iter().collect();
    assert_eq!(unique.len(), 3);
}

#[test]
fn flattening_shows_what_the_overlay_would() {
    let dir = tempfile::tempdir().unwrap();
    let third = Tar::default()
        .file(".wh.bin", b"")
        .dir("bin/")
        .file("bin/only", b"1")
        .file("data/.wh.c", b"")
        .end();
    let source = image(dir.path(), &[base(), upper(), third]);
    let root = dir.path().join("root");
    fs::create_dir(&root).unwrap();
    import_flat(&source, &root, &ImportOptions::default()).unwrap();
    assert_eq!(names(&root), ["bin", "data", "etc", "lib", "usr"]);
    assert_eq!(names(&root.join("bin")), ["only"]);
    assert!(names(&root.join("data")).is_empty());
    assert_eq!(names(&root.join("etc")), ["new", "passwd"]);
    assert_eq!(opaque(&root.join("bin")), None);
    assert_eq!(fs::read_link(root.join("lib")).unwrap().to_str(), Some("usr/lib"));
    assert_eq!(fs::metadata(root.join("usr")).unwrap().mtime(), 1_600_000_000);
    assert_eq!(names(dir.path()), ["image.tar", "root"]);
    let again = import_flat(&source, &root, &ImportOptions::default()).unwrap_err();
    assert!(matches!(again, Error::Exists { .. }), "{again}");
}

#[test]
fn an_opaque_root_ends_the_stack() {
    let dir = tempfile::tempdir().unwrap();
    let top = Tar::default().file(".wh..wh..opq", b"").file("only", b"1").end();
    let source = image(dir.path(), &[base(), top]);
    let layers = import(&source, &dir.path().join("layers"), &ImportOptions::default())
        .unwrap()
        .layers;
    assert_eq!(layers.len(), 1);
    // The mark is remembered with the layer, not only while it is unpacked.
    let again = import(&source, &dir.path().join("layers"), &ImportOptions::default()).unwrap();
    assert_eq!((again.layers, again.reused), (layers, 2));
    import_flat(&source, &dir.path().join("root"), &ImportOptions::default()).unwrap();
    assert_eq!(names(&dir.path().join("root")), ["only"]);
}

#[test]
fn whiteouts_never_hide_what_their_own_layer_brings() {
    let dir = tempfile::tempdir().unwrap();
    let top = Tar::default()
        .file(".wh.before", b"")
        .file("before", b"1")
        .dir("after/")
        .file("after/x", b"2")
        .file(".wh.after", b"")
        .file(".wh.implied", b"")
        .file("implied/y", b"3")
        .end();
    let image = import(
        &image(dir.path(), &[top]),
        &dir.path().join("layers"),
        &ImportOptions::default(),
    )
    .unwrap();
    let layer = &image.layers[0];
    assert_eq!(fs::read(layer.join("before")).unwrap(), b"1");
    assert_eq!(opaque(&layer.join("after")).unwrap(), b"y");
    assert_eq!(opaque(&layer.join("implied")).unwrap(), b"y");
    assert_eq!(fs::read(layer.join("implied/y")).unwrap(), b"3");
}

#[test]
fn later_entries_replace_earlier_ones() {
    let dir = tempfile::tempdir().unwrap();
    let tar = Tar::default()
        .file("f", b"old")
        .file("f", b"new")
        .dir("d/")
        .file("d/x", b"x")
        .file("d", b"file now")
        .symlink("s", "f")
        .dir("s/")
        .file("s/inside", b"i")
        .file("h", b"1")
        .hard_link("h2", "h")
        .hard_link("h2", "h")
        .end();
    let image = import(
        &image(dir.path(), &[tar]),
        &dir.path().join("layers"),
        &ImportOptions::default(),
    )
    .unwrap();
    let layer = &image.layers[0];
    assert_eq!(fs::read(layer.join("f")).unwrap(), b"new");
    assert_eq!(fs::read(layer.join("d")).unwrap(), b"file now");
    assert_eq!(fs::read(layer.join("s/inside")).unwrap(), b"i");
    assert_eq!(fs::metadata(layer.join("h")).unwrap().nlink(), 2);
}

#[test]
fn extended_headers_are_honoured() {
    let dir = tempfile::tempdir().unwrap();
    let long = format!("long/{}", "n".repeat(200));
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let tar = Tar::default()
        .pax(&[
            ("path", long.as_bytes()),
            ("mtime", b"1234567890.987654321"),
            ("uid", b"3000000"),
            ("SCHILY.xattr.user.note", b"a=b\nc"),
            ("SCHILY.xattr.security.capability", &capability),
            (
                "SCHILY.acl.access",
                b"user::rw-,user:1000:r--,group::r--,mask::r--,other::r--",
            ),
        ])
        .file("short", b"x")
        .pax(&[("mtime", b"1000000000.5")])
        .dir("long/")
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"sparse"),
            ("GNU.sparse.realsize", b"10000000"),
        ])
        .head(
            Head {
                path: b"GNUSparseFile.0/sparse",
                ..Head::default()
            },
            512 + 4,
        )
        .data(b"1\n5000000\n4\n")
        .data(b"data")
        .head(
            Head {
                path: b"fifo",
                kind: b'6',
                ..Head::default()
            },
            0,
        )
        .end();
    let image = import(
        &image(dir.path(), &[tar]),
        &dir.path().join("layers"),
        &ImportOptions::default(),
    )
    .unwrap();
    assert!(image.warnings.is_empty(), "{:?}", image.warnings);
    let layer = &image.layers[0];
    let meta = fs::metadata(layer.join(&long)).unwrap();
    assert_eq!(
        (meta.mtime(), meta.mtime_nsec(), meta.uid()),
        (1_234_567_890, 987_654_321, 3_000_000)
    );
    let dir_meta = fs::metadata(layer.join("long")).unwrap();
    assert_eq!(
        (dir_meta.mtime(), dir_meta.mtime_nsec()),
        (1_000_000_000, 500_000_000)
    );
    let shown = snapshot(layer).join("\n");
    assert!(shown.contains(&format!("user.note={:?}", b"a=b\nc")), "{shown}");
    assert!(shown.contains("security.capability=[1, 0, 0, 2"), "{shown}");
    assert!(
        shown.contains("system.posix_acl_access=[2, 0, 0, 0, 1, 0, 6, 0"),
        "{shown}"
    );
    let sparse = fs::metadata(layer.join("sparse")).unwrap();
    assert!(sparse.len() == 10_000_000 && sparse.blocks() * 512 < 1_000_000);
    assert_eq!(
        &fs::read(layer.join("sparse")).unwrap()[5_000_000..5_000_004],
        b"data"
    );
    assert!(
        fs::symlink_metadata(layer.join("fifo"))
            .unwrap()
            .file_type()
            .is_fifo()
    );
}

/// The archives of GNU tar, in all its ways to write sparse files, long names, attributes and lists.
#[test]
fn archives_of_gnu_tar_are_understood() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir_all(tree.join("d").join("e".repeat(120))).unwrap();
    fs::write(
        tree.join("d").join("e".repeat(120)).join("f".repeat(150)),
        b"deep",
    )
    .unwrap();
    fs::write(tree.join("a"), b"a").unwrap();
    fs::hard_link(tree.join("a"), tree.join("d/b")).unwrap();
    std::os::unix::fs::symlink("x".repeat(180), tree.join("link")).unwrap();
    std::os::unix::fs::chown(tree.join("a"), Some(3_000_000), Some(3_000_001)).unwrap();
    let sparse = fs::File::create(tree.join("sparse")).unwrap();
    for i in 0..30u64 {
        std::os::unix::fs::FileExt::write_all_at(&sparse, b"data", i * 300_000).unwrap();
    }
    sparse.set_len(12_000_000).unwrap();
    fs::File::create(tree.join("hole"))
        .unwrap()
        .set_len(1 << 26)
        .unwrap();
    let formats: [&[&str]; 5] = [
        &["--format=gnu"],
        &["--format=posix", "--sparse-version=0.0"],
        &["--format=posix", "--sparse-version=0.1"],
        &["--format=posix", "--sparse-version=1.0"],
        &["--format=oldgnu"],
    ];
    for (i, format) in formats.iter().enumerate() {
        let plain = dir.path().join(format!("{i}.tar"));
        let status = std::process::Command::new("tar")
            .args(*format)
            .args(["--sparse", "--numeric-owner", "--hole-detection=seek", "-C"])
            .arg(&tree)
            .arg("-cf")
            .arg(&plain)
            .arg(".")
            .status()
            .expect("GNU tar is needed for this test");
        assert!(status.success());
        let into = dir.path().join(format!("image-{i}"));
        fs::create_dir(&into).unwrap();
        let image = import(
            &image(&into, &[fs::read(&plain).unwrap()]),
            &into.join("layers"),
            &ImportOptions::default(),
        )
        .unwrap();
        let strip = |lines: Vec<String>| -> Vec<String> {
            // Only the pax format carries fractions of seconds.
            let whole = format.contains(&"--format=posix");
            let cut = |l: &String| if whole { l.clone() } else { without_fraction(l) };
            lines.iter().map(cut).collect()
        };
        assert_eq!(
            strip(snapshot(&image.layers[0])),
            strip(snapshot(&tree)),
            "{format:?}"
        );
    }
}

/// Removes the nine digits after the point of the time field.
fn without_fraction(line: &str) -> String {
    match line.find(" rdev=") {
        Some(end) => format!("{}{}", &line[..end - 10], &line[end..]),
        None => line.to_owned(),
    }
}

#[test]
fn devices_are_left_out_with_a_warning() {
    let dir = tempfile::tempdir().unwrap();
    let tar = Tar::default()
        .dir("dev/")
        .head(
            Head {
                path: b"dev/sda",
                kind: b'4',
                device: (8, 0),
                mode: 0o666,
                ..Head::default()
            },
            0,
        )
        .head(
            Head {
                path: b"dev/fake-whiteout",
                kind: b'3',
                device: (0, 0),
                ..Head::default()
            },
            0,
        )
        .pax(&[
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ])
        .dir("trick/")
        .end();
    let source = image(dir.path(), &[tar]);
    for options in [
        ImportOptions::default(),
        ImportOptions {
            keep_devices: true,
            ..ImportOptions::default()
        },
    ] {
        let image = import(&source, &dir.path().join("layers"), &options).unwrap();
        let layer = &image.layers[0];
        let kept = options.keep_devices;
        assert_eq!(layer.join("dev/sda").exists(), kept);
        assert!(!layer.join("dev/fake-whiteout").exists());
        assert_eq!(opaque(&layer.join("trick")), None);
        assert_eq!(
            image.warnings.len(),
            if kept { 3 } else { 4 },
            "{:?}",
            image.warnings
        );
        assert!(
            image
                .warnings
                .iter()
                .any(|w| w.contains("dev/fake-whiteout") && w.contains("device 0:0"))
        );
        // A layer that is reused still tells what it lacks.
        let again = import(&source, &dir.path().join("layers"), &options).unwrap();
        assert_eq!((again.reused, again.warnings), (1, image.warnings));
    }
}

#[test]
fn one_of_several_images_is_chosen_by_name_or_platform() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("two.tar");
    let mut files = docker_save(&[base()]);
    let one = String::from_utf8(files[0].1.clone()).unwrap();
    let two = one.replace("work:latest", "ghcr.io/a/b:v2");
    files[0].1 = format!("[{},{}]", &one[1..one.len() - 1], &two[1..two.len() - 1]).into_bytes();
    write_tar(&path, &files);
    let options = ImportOptions::default();
    let dest = dir.path().join("layers");
    let error = import(&source(&path), &dest, &options).unwrap_err();
    assert!(
        matches!(&error, Error::Ambiguous { names, .. } if names == &["work:latest", "ghcr.io/a/b:v2"]),
        "{error}"
    );
    for name in ["work", "work:latest", "docker.io/library/work", "ghcr.io/a/b:v2"] {
        let source = ImageSource::parse(&format!("{}:{name}", path.display())).unwrap();
        import(&source, &dest, &options).unwrap();
    }
    let wrong = ImageSource::parse(&format!("{}:nothing", path.display())).unwrap();
    assert!(matches!(
        import(&wrong, &dest, &options).unwrap_err(),
        Error::NoSuchName { .. }
    ));
    let foreign = write_tar(
        &dir.path().join("foreign.tar"),
        &layout_for(&[(base(), base())], "s390x"),
    );
    let error = import(&foreign, &dest, &options).unwrap_err();
    assert!(matches!(error, Error::NoPlatform { .. }), "{error}");
}
