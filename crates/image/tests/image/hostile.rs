//! Images made to do harm, or just broken: each is refused with one clear line, and nothing is left.

use std::fs;
use std::path::Path;

use deltabox_image::{Error, ImageSource, ImportOptions, Limits, import, import_flat};

use crate::common::*;

/// Imports, expects a refusal, and checks that nothing was left or changed. Returns the error's text.
fn refused_with(dir: &Path, source: &ImageSource, options: &ImportOptions) -> (Error, String) {
    let canary = dir.join("canary");
    fs::write(&canary, b"untouched").unwrap();
    let before = names(dir);
    let flat = import_flat(source, &dir.join("flat"), options).unwrap_err();
    let error = import(source, &dir.join("layers"), options).unwrap_err();
    assert_eq!(names(dir), before, "something was left behind by: {error}");
    assert_eq!(fs::read(&canary).unwrap(), b"untouched");
    let text = error.to_string();
    assert_eq!(
        std::mem::discriminant(&flat),
        std::mem::discriminant(&error),
        "{flat} / {error}"
    );
    assert!(!text.contains('\n') && text.len() < 700, "{text}");
    assert!(text.contains(';'), "no remedy in: {text}");
    (error, text)
}

fn refused(layers: &[Vec<u8>]) -> (Error, String) {
    let dir = tempfile::tempdir().unwrap();
    let source = image(dir.path(), layers);
    refused_with(dir.path(), &source, &ImportOptions::default())
}

/// Refused as unsafe, for the given reason.
fn unsafe_entry(layer: Vec<u8>, why: &str) {
    let (error, text) = refused(&[layer]);
    assert!(matches!(error, Error::Unsafe { .. }), "{text}");
    assert!(text.contains(why), "{text} does not say {why:?}");
}

fn damaged(layer: Vec<u8>) {
    let (error, text) = refused(&[layer]);
    assert!(matches!(error, Error::Damaged { .. }), "{text}");
}

#[test]
fn paths_that_lead_outside() {
    for path in ["../canary", "a/../../canary", "..", "./../canary", "a/.."] {
        unsafe_entry(Tar::default().file(path, b"evil").end(), "leads upwards");
    }
    for path in ["/canary", "//etc/passwd"] {
        unsafe_entry(Tar::default().file(path, b"evil").end(), "is absolute");
    }
    let long = Tar::default()
        .pax(&[("path", b"a/../../../canary")])
        .file("x", b"evil")
        .end();
    unsafe_entry(long, "leads upwards");
    unsafe_entry(
        Tar::default().pax(&[("path", b"a\0b")]).file("x", b"").end(),
        "NUL",
    );
    unsafe_entry(
        Tar::default().pax(&[("path", &[b'n'; 300])]).file("x", b"").end(),
        "longer than 255",
    );
}

#[test]
fn paths_through_links_that_lead_outside() {
    for target in ["..", "../..", "/", "/tmp", "/proc/self/root", "a/../../.."] {
        let tar = Tar::default().dir("a/").symlink("link", target);
        unsafe_entry(tar.clone().file("link/canary", b"evil").end(), "out of the root");
        unsafe_entry(tar.clone().dir("link/dir/").end(), "out of the root");
        unsafe_entry(tar.clone().file("link/.wh.canary", b"").end(), "out of the root");
        unsafe_entry(
            tar.clone().file("link/.wh..wh..opq", b"").end(),
            "out of the root",
        );
        unsafe_entry(
            tar.clone().hard_link("mine", "link/canary").end(),
            "out of the root",
        );
        unsafe_entry(
            tar.file("f", b"").hard_link("link/canary", "f").end(),
            "out of the root",
        );
    }
    unsafe_entry(
        Tar::default()
            .symlink("a", "b")
            .symlink("b", "a")
            .file("a/x", b"")
            .end(),
        "out of the root",
    );
    unsafe_entry(
        Tar::default().symlink("a", "nowhere").file("a/x", b"").end(),
        "leads nowhere",
    );
    // A chain: each link stays inside where it is, together they would not.
    let chain = Tar::default()
        .dir("d/")
        .symlink("d/up", "..")
        .symlink("d/up2", "up/..")
        .file("d/up2/canary", b"x")
        .end();
    unsafe_entry(chain, "out of the root");
}

#[test]
fn links_of_a_lower_layer_are_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().to_str().unwrap();
    let lower = Tar::default().symlink("lib", target).end();
    let source = image(dir.path(), &[lower, Tar::default().file("lib/x", b"1").end()]);
    import(&source, &dir.path().join("layers"), &ImportOptions::default()).unwrap();
    import_flat(&source, &dir.path().join("flat"), &ImportOptions::default()).unwrap();
    assert_eq!(fs::read(dir.path().join("flat/lib/x")).unwrap(), b"1");
    assert!(names(outside.path()).is_empty());
}

#[test]
fn links_that_stay_inside_are_followed() {
    let dir = tempfile::tempdir().unwrap();
    let tar = Tar::default()
        .dir("usr/")
        .dir("usr/lib/")
        .symlink("lib", "usr/lib")
        .file("lib/x", b"1")
        .end();
    let image = import(
        &image(dir.path(), &[tar]),
        &dir.path().join("layers"),
        &ImportOptions::default(),
    )
    .unwrap();
    assert_eq!(fs::read(image.layers[0].join("usr/lib/x")).unwrap(), b"1");
}

#[test]
fn hard_links_to_anything_but_files_of_the_layer() {
    let tar = || Tar::default().dir("d/").file("d/f", b"1");
    unsafe_entry(tar().hard_link("x", "../../canary").end(), "leads upwards");
    unsafe_entry(tar().hard_link("x", "/etc/passwd").end(), "is absolute");
    unsafe_entry(tar().hard_link("x", "nothing").end(), "not in this layer");
    unsafe_entry(tar().hard_link("x", "d").end(), "to a directory");
    unsafe_entry(tar().hard_link("x", "x").end(), "to itself");
    unsafe_entry(tar().hard_link("d", "d/f").end(), "inside what it replaces");
    unsafe_entry(tar().hard_link("x", "d/f/y").end(), "not in this layer");
    unsafe_entry(
        tar().file(".wh.gone", b"").hard_link("x", "gone").end(),
        "not in this layer",
    );
}

#[test]
fn entries_of_the_wrong_kind() {
    unsafe_entry(
        Tar::default().file("f", b"").file("f/x", b"").end(),
        "parent is no directory",
    );
    unsafe_entry(Tar::default().file("./", b"").end(), "root is no directory");
    unsafe_entry(Tar::default().symlink(".", "/etc").end(), "root is no directory");
    unsafe_entry(Tar::default().file(".wh..", b"").end(), "whiteout of no name");
    unsafe_entry(Tar::default().file(".wh...", b"").end(), "whiteout of no name");
    unsafe_entry(Tar::default().file(".wh.", b"").end(), "whiteout of no name");
    unsafe_entry(Tar::default().file(".wh.a/b", b"").end(), "inside a whiteout");
    unsafe_entry(Tar::default().symlink("x", "").end(), "link text is empty");
    unsafe_entry(
        Tar::default()
            .head(
                Head {
                    path: b"x",
                    kind: b'Z',
                    ..Head::default()
                },
                0,
            )
            .end(),
        "is unknown",
    );
    unsafe_entry(
        Tar::default()
            .pax(&[("DELTABOX.kind", b"bomb")])
            .file("x", b"")
            .end(),
        "is unknown",
    );
}

#[test]
fn names_of_hostile_entries_are_shown_harmlessly() {
    let (_, text) = refused(&[Tar::default().file("\x1b[2J\n\r\u{7f}/../x", b"").end()]);
    assert!(!text.chars().any(char::is_control), "{text:?}");
}

#[test]
fn damaged_archives() {
    let good = Tar::default().dir("d/").file("d/f", &[7; 3000]).end();
    for cut in [1, 100, 511, 512, 700, 1024, 1500, 3000, good.len() - 1024] {
        damaged(good[..cut].to_vec());
    }
    let mut bad = good.clone();
    bad[3] ^= 1;
    damaged(bad);
    damaged(Tar::default().pax(&[("size", b"x")]).file("x", b"").end());
    damaged(
        Tar::default()
            .pax(&[("mtime", b"yesterday")])
            .file("x", b"")
            .end(),
    );
    damaged(Tar::default().pax(&[("uid", b"4294967295")]).file("x", b"").end());
    damaged(
        Tar::default()
            .pax(&[("uid", b"99999999999999999999999")])
            .file("x", b"")
            .end(),
    );
    let sparse = |map: &[u8]| {
        let pax: [(&str, &[u8]); 4] = [
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"s"),
            ("GNU.sparse.realsize", b"100"),
        ];
        Tar::default()
            .pax(&pax)
            .head(
                Head {
                    path: b"s",
                    ..Head::default()
                },
                512,
            )
            .data(map)
            .end()
    };
    for map in [
        &b"1\n0\n50\n"[..],
        b"1\n200\n1\n",
        b"2\n0\n1\n",
        b"x\n",
        b"",
        b"1\n18446744073709551615\n18446744073709551615\n",
        b"99999999999999999999999\n",
    ] {
        damaged(sparse(map));
    }
    for packed in [gzip(&good), zstd(&good)] {
        let dir = tempfile::tempdir().unwrap();
        let cut = packed[..packed.len() - 20].to_vec();
        let source = write_tar(&dir.path().join("i.tar"), &layout(&[(cut, good.clone())]));
        let (error, text) = refused_with(dir.path(), &source, &ImportOptions::default());
        assert!(matches!(error, Error::Damaged { .. }), "{text}");
    }
}

#[test]
fn content_that_does_not_match_its_digest() {
    let dir = tempfile::tempdir().unwrap();
    let layer = Tar::default().file("f", b"good").end();
    let good = layout(&[(gzip(&layer), layer.clone())]);
    for (name, bytes) in &good {
        if name.starts_with("blobs/") {
            let mut bad = good.clone();
            let at = bad.iter().position(|(n, _)| n == name).unwrap();
            // Valid in itself, but something else than was promised.
            bad[at].1 = match bytes[..] {
                [b'{', ..] => [&bytes[..], b" "].concat(),
                _ => gzip(&Tar::default().file("f", b"evil").end()),
            };
            let source = write_tar(&dir.path().join("i.tar"), &bad);
            let (error, text) = refused_with(dir.path(), &source, &ImportOptions::default());
            assert!(matches!(error, Error::DigestMismatch { .. }), "{text}");
        }
    }
    // The packed digest is right, the digest of the content is not.
    let other = Tar::default().file("f", b"other").end();
    let source = write_tar(
        &dir.path().join("i.tar"),
        &layout(&[(gzip(&layer), other.clone())]),
    );
    let (error, _) = refused_with(dir.path(), &source, &ImportOptions::default());
    assert!(matches!(error, Error::DigestMismatch { .. }));
    let mut saved = docker_save(&[layer]);
    saved[2].1 = other;
    let source = write_tar(&dir.path().join("i.tar"), &saved);
    let (error, _) = refused_with(dir.path(), &source, &ImportOptions::default());
    assert!(matches!(error, Error::DigestMismatch { .. }));
}

#[test]
fn a_good_layer_below_a_bad_one_is_not_left_behind() {
    let (error, _) = refused(&[
        Tar::default().file("fine", b"1").end(),
        Tar::default().file("../x", b"").end(),
    ]);
    assert!(matches!(error, Error::Unsafe { .. }));
}

#[test]
fn incomplete_and_malformed_images() {
    let dir = tempfile::tempdir().unwrap();
    let layer = Tar::default().file("f", b"1").end();
    let good = layout(&[(layer.clone(), layer.clone())]);
    let options = ImportOptions::default();
    for missing in 2..good.len() {
        let mut files = good.clone();
        files.remove(missing);
        let (error, text) = refused_with(
            dir.path(),
            &write_tar(&dir.path().join("i.tar"), &files),
            &options,
        );
        assert!(matches!(error, Error::Missing { .. }), "{text}");
    }
    let nested = "[".repeat(100_000);
    let documents = [
        "",
        "{",
        "[]",
        "null",
        "{\"manifests\":3}",
        "{\"manifests\":[]}",
        &nested,
        r#"{"manifests":[{"digest":"sha256:../../canary"}]}"#,
        r#"{"manifests":[{"digest":"md5:00"}]}"#,
    ];
    for document in documents {
        for name in ["index.json", "manifest.json"] {
            let source = write_tar(
                &dir.path().join("i.tar"),
                &[(name.to_owned(), document.as_bytes().to_vec())],
            );
            let (error, text) = refused_with(dir.path(), &source, &options);
            assert!(matches!(error, Error::BadDocument { .. }), "{text}");
        }
    }
    let evil = r#"[{"Config":"../../../etc/passwd","Layers":[]}]"#;
    let source = write_tar(
        &dir.path().join("i.tar"),
        &[("manifest.json".into(), evil.into())],
    );
    assert!(matches!(
        refused_with(dir.path(), &source, &options).0,
        Error::BadDocument { .. }
    ));
    let source = write_tar(
        &dir.path().join("i.tar"),
        &[("repositories".into(), b"{}".to_vec())],
    );
    let (_, text) = refused_with(dir.path(), &source, &options);
    assert!(text.contains("older than 1.10"), "{text}");
    let source = write_tar(
        &dir.path().join("i.tar"),
        &[("etc/passwd".into(), b"root".to_vec())],
    );
    assert!(matches!(
        refused_with(dir.path(), &source, &options).0,
        Error::NotAnImage { .. }
    ));
}

#[test]
fn files_that_are_no_images() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("thing");
    for bytes in [
        &b""[..],
        b"hello",
        &[0; 4096],
        b"PK\x03\x04zip",
        b"\xfd7zXZ\0xz",
        b"BZh91AY",
        &gzip(b"no tar"),
        &zstd(b""),
    ] {
        fs::write(&path, bytes).unwrap();
        let (error, text) = refused_with(dir.path(), &source(&path), &ImportOptions::default());
        let expected = matches!(
            error,
            Error::NotAnImage { .. } | Error::Unsupported { .. } | Error::Damaged { .. }
        );
        assert!(expected, "{bytes:?}: {text}");
    }
    let plain = dir.path().join("plain-directory");
    fs::create_dir(&plain).unwrap();
    assert!(matches!(
        refused_with(dir.path(), &source(&plain), &ImportOptions::default()).0,
        Error::NotAnImage { .. }
    ));
}

#[test]
fn a_layout_directory_does_not_lead_outside_itself() {
    let dir = tempfile::tempdir().unwrap();
    let layer = Tar::default().file("f", b"1").end();
    let files = layout(&[(layer.clone(), layer)]);
    let at = dir.path().join("layout");
    let source = write_dir(&at, &files);
    let (name, bytes) = files.last().unwrap();
    fs::remove_file(at.join(name)).unwrap();
    fs::write(dir.path().join("secret"), bytes).unwrap();
    std::os::unix::fs::symlink(dir.path().join("secret"), at.join(name)).unwrap();
    let (error, text) = refused_with(dir.path(), &source, &ImportOptions::default());
    assert!(
        matches!(error, Error::NotAnImage { .. }) && text.contains("symbolic link"),
        "{text}"
    );
    fs::remove_file(at.join(name)).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        at.join(name),
        rustix::fs::FileType::Fifo,
        0o600.into(),
        0,
    )
    .unwrap();
    // A FIFO must not make the import wait for a writer.
    assert!(matches!(
        refused_with(dir.path(), &source, &ImportOptions::default()).0,
        Error::NotAnImage { .. }
    ));
}

fn limited(layers: &[(Vec<u8>, Vec<u8>)], option: &'static str, set: impl Fn(&mut Limits)) {
    let dir = tempfile::tempdir().unwrap();
    let mut options = ImportOptions::default();
    set(&mut options.limits);
    let source = write_tar(&dir.path().join("i.tar"), &layout(layers));
    let (error, text) = refused_with(dir.path(), &source, &options);
    assert!(
        matches!(error, Error::Limit { option: found, .. } if found == option),
        "{text}"
    );
    // The same image passes with the ordinary limits, unless it is a bomb by those, too.
    if option != "Limits::ratio" {
        import(&source, &dir.path().join("layers"), &ImportOptions::default()).unwrap();
    }
}

#[test]
fn limits_hold() {
    let twin = |layer: Vec<u8>| (layer.clone(), layer);
    let megabyte = Tar::default().file("f", &vec![5; 1 << 20]).end();
    let half = || twin(Tar::default().file("g", &vec![6; 700 << 10]).end());
    limited(&[twin(megabyte.clone())], "Limits::bytes", |l| l.bytes = 1 << 20);
    limited(&[twin(megabyte.clone()), half()], "Limits::bytes", |l| {
        l.bytes = 1600 << 10
    });
    limited(&[twin(megabyte.clone())], "Limits::file_bytes", |l| {
        l.file_bytes = 1 << 19
    });
    let mut many = Tar::default();
    for i in 0..50 {
        many = many.file(&format!("f{i}"), b"");
    }
    limited(&[twin(many.end())], "Limits::entries", |l| l.entries = 49);
    limited(
        &[twin(Tar::default().file("a/b/c/d/e", b"").end())],
        "Limits::depth",
        |l| l.depth = 4,
    );
    limited(
        &[twin(Tar::default().file(&"p/".repeat(40), b"").end())],
        "Limits::path_bytes",
        |l| l.path_bytes = 60,
    );
    limited(&[half(), twin(megabyte)], "Limits::layers", |l| l.layers = 1);
    let headers = Tar::default()
        .pax(&[("SCHILY.xattr.user.a", &[b'x'; 3000])])
        .file("x", b"")
        .end();
    limited(&[twin(headers)], "Limits::metadata_bytes", |l| {
        l.metadata_bytes = 2000
    });
    let sparse = Tar::default()
        .pax(&[("GNU.sparse.size", b"100"), ("GNU.sparse.map", b"0,1,10,1,20,1")])
        .file("s", b"abc")
        .end();
    limited(&[twin(sparse)], "Limits::sparse_segments", |l| {
        l.sparse_segments = 2
    });
}

#[test]
fn decompression_bombs() {
    let bomb = Tar::default().file("zeros", &vec![0; 6 << 20]).end();
    for packed in [gzip(&bomb), zstd(&bomb)] {
        limited(&[(packed, bomb.clone())], "Limits::ratio", |l| {
            (l.ratio, l.ratio_floor_bytes) = (100, 1 << 20)
        });
    }
    // Behind the end of the archive, where nobody looks.
    let mut tail = Tar::default().file("f", b"1").end();
    tail.resize(6 << 20, 0);
    limited(&[(gzip(&tail), tail.clone())], "Limits::ratio", |l| {
        (l.ratio, l.ratio_floor_bytes) = (100, 1 << 20)
    });
    limited(&[(gzip(&tail), tail)], "Limits::bytes", |l| l.bytes = 1 << 20);
    // The outer archive itself.
    let dir = tempfile::tempdir().unwrap();
    let inner = write_tar(&dir.path().join("i.tar"), &docker_save(&[bomb]));
    let ImageSource::Local { path, .. } = inner else {
        unreachable!()
    };
    let outer = dir.path().join("i.tar.gz");
    fs::write(&outer, gzip(&fs::read(path).unwrap())).unwrap();
    let mut options = ImportOptions::default();
    (options.limits.ratio, options.limits.ratio_floor_bytes) = (100, 1 << 20);
    let (error, text) = refused_with(dir.path(), &source(&outer), &options);
    assert!(matches!(error, Error::Limit { .. }), "{text}");
    // A file that claims to be huge without being stored.
    let claim = Tar::default()
        .pax(&[
            ("GNU.sparse.size", b"9223372036854775807"),
            ("GNU.sparse.map", b"0,1"),
        ])
        .file("s", b"a")
        .end();
    let (error, text) = refused(&[claim]);
    assert!(matches!(error, Error::Limit { .. }), "{text}");
}

#[test]
fn leftovers_of_a_killed_import_are_cleaned_up() {
    let dir = tempfile::tempdir().unwrap();
    let dest = dir.path().join("layers");
    fs::create_dir_all(dest.join(".import-dead/sha256-x/deep")).unwrap();
    let source = image(dir.path(), &[Tar::default().file("f", b"1").end()]);
    import(&source, &dest, &ImportOptions::default()).unwrap();
    assert!(!dest.join(".import-dead").exists());
}

#[test]
fn parallel_imports_of_one_image_agree() {
    let dir = tempfile::tempdir().unwrap();
    let dest = dir.path().join("layers");
    let source = image(
        dir.path(),
        &[
            Tar::default().file("f", &[9; 100_000]).end(),
            Tar::default().file("g", b"1").end(),
        ],
    );
    std::thread::scope(|scope| {
        let import = || import(&source, &dest, &ImportOptions::default()).unwrap().layers;
        let all: Vec<_> = (0..8).map(|_| scope.spawn(import)).collect();
        let all: Vec<_> = all.into_iter().map(|t| t.join().unwrap()).collect();
        assert!(all.windows(2).all(|pair| pair[0] == pair[1]));
    });
    assert_eq!(names(&dest).len(), 4, "{:?}", names(&dest));
}
