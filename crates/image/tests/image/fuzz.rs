//! Mutated archives: never a panic, nothing outside, nothing left, no limit passed.

use std::fs;
use std::path::Path;

use deltabox_image::{ImportOptions, import};
use proptest::prelude::*;

use crate::common::*;

/// One mutation of an archive.
#[derive(Debug, Clone)]
enum Change {
    Byte(usize, u8),
    Cut(usize),
    Repeat(usize, usize),
    Remove(usize, usize),
    Name(usize, &'static str),
    Kind(usize, u8),
    Link(usize, &'static str),
    Size(usize, u64),
}

const NAMES: [&str; 8] = [
    "../canary",
    "/canary",
    "l/canary",
    "d/../../canary",
    "d",
    "l",
    ".wh.d",
    "d/.wh..wh..opq",
];

fn change() -> impl Strategy<Value = Change> {
    let name = proptest::sample::select(&NAMES[..]);
    prop_oneof![
        (any::<usize>(), any::<u8>()).prop_map(|(at, b)| Change::Byte(at, b)),
        any::<usize>().prop_map(Change::Cut),
        (any::<usize>(), 1usize..4).prop_map(|(at, n)| Change::Repeat(at, n)),
        (any::<usize>(), 1usize..4).prop_map(|(at, n)| Change::Remove(at, n)),
        (any::<usize>(), name.clone()).prop_map(|(at, n)| Change::Name(at, n)),
        (
            any::<usize>(),
            proptest::sample::select(&b"0123456SxgLKVMD\0Z"[..])
        )
            .prop_map(|(at, k)| Change::Kind(at, k)),
        (any::<usize>(), name).prop_map(|(at, n)| Change::Link(at, n)),
        (any::<usize>(), any::<u64>()).prop_map(|(at, n)| Change::Size(at, n)),
    ]
}

fn mutate(tar: &mut Vec<u8>, change: &Change) {
    let blocks = tar.len() / 512;
    if blocks == 0 {
        return;
    }
    let block = |at: usize| (at % blocks) * 512;
    let mut header = |at: usize, edit: &dyn Fn(&mut [u8])| {
        let at = block(at);
        edit(&mut tar[at..at + 512]);
        // With a right checksum, so that the change is looked at.
        seal(&mut tar[at..at + 512]);
    };
    match *change {
        Change::Byte(at, byte) => {
            let at = at % tar.len();
            tar[at] = byte;
        }
        Change::Cut(at) => tar.truncate(at % tar.len()),
        Change::Repeat(at, n) => {
            let at = block(at);
            let copy = tar[at..(at + n * 512).min(tar.len())].to_vec();
            tar.splice(at..at, copy);
        }
        Change::Remove(at, n) => {
            let at = block(at);
            let end = (at + n * 512).min(tar.len());
            tar.drain(at..end);
        }
        Change::Name(at, name) => header(at, &|b| {
            b[..100].fill(0);
            b[..name.len()].copy_from_slice(name.as_bytes());
        }),
        Change::Kind(at, kind) => header(at, &|b| b[156] = kind),
        Change::Link(at, name) => header(at, &|b| {
            b[157..257].fill(0);
            b[157..157 + name.len()].copy_from_slice(name.as_bytes());
        }),
        Change::Size(at, size) => header(at, &|b| {
            b[124] = 0x80;
            b[125..128].fill(0);
            b[128..136].copy_from_slice(&size.to_be_bytes());
        }),
    }
}

fn seed() -> Vec<u8> {
    Tar::default()
        .dir("d/")
        .file("d/f", &[1; 1300])
        .symlink("l", "d")
        .hard_link("h", "d/f")
        .file(".wh.old", b"")
        .pax(&[
            ("path", b"renamed"),
            ("mtime", b"1.5"),
            ("SCHILY.xattr.user.a", b"b"),
        ])
        .file("x", b"xyz")
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"s"),
            ("GNU.sparse.realsize", b"9000"),
        ])
        .head(
            Head {
                path: b"GNUSparseFile.0/s",
                ..Head::default()
            },
            516,
        )
        .data(b"1\n4096\n4\n")
        .data(b"data")
        .symlink("up", "..")
        .file("last", b"1")
        .end()
}

fn bytes_below(dir: &Path) -> (u64, u64) {
    let mut sum = (0, 0);
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let meta = entry.path().symlink_metadata().unwrap();
        sum.1 += 1;
        if meta.is_dir() {
            let inner = bytes_below(&entry.path());
            sum = (sum.0 + inner.0, sum.1 + inner.1);
        } else if meta.is_file() {
            sum.0 += std::os::unix::fs::MetadataExt::blocks(&meta) * 512;
        }
    }
    sum
}

fn check(layer: &[u8], outer: impl Fn(Vec<u8>) -> Vec<u8>) -> Result<(), TestCaseError> {
    // In memory: each import syncs its filesystem, and there are many.
    let dir = tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap();
    let inside = dir.path().join("inside");
    fs::create_dir(&inside).unwrap();
    fs::write(dir.path().join("canary"), b"untouched").unwrap();
    fs::write(inside.join("canary"), b"untouched").unwrap();
    let tar = inside.join("i.tar");
    write_tar(&tar, &layout(&[(layer.to_vec(), layer.to_vec())]));
    let bytes = outer(fs::read(&tar).unwrap());
    fs::write(&tar, bytes).unwrap();
    let mut options = ImportOptions::default();
    options.limits.bytes = 64 << 10;
    options.limits.entries = 100;
    let dest = inside.join("layers");
    let result = import(&source(&tar), &dest, &options);
    for canary in [dir.path().join("canary"), inside.join("canary")] {
        prop_assert_eq!(fs::read(canary).unwrap(), b"untouched");
    }
    prop_assert_eq!(names(dir.path()), ["canary", "inside"]);
    match result {
        Ok(image) => {
            let (bytes, entries) = bytes_below(&image.layers[0]);
            prop_assert!(
                bytes <= 2 * (64 << 10) && entries <= 400,
                "{} bytes, {} entries",
                bytes,
                entries
            );
        }
        Err(error) => {
            prop_assert!(!error.to_string().contains('\n'), "{}", error);
            prop_assert!(!dest.exists(), "left behind after {}: {:?}", error, names(&dest));
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn mutated_layers_do_no_harm(changes in proptest::collection::vec(change(), 1..6)) {
        let mut layer = seed();
        changes.iter().for_each(|c| mutate(&mut layer, c));
        check(&layer, |bytes| bytes)?;
    }

    #[test]
    fn mutated_images_do_no_harm(changes in proptest::collection::vec(change(), 1..4)) {
        check(&seed(), |mut bytes| {
            changes.iter().for_each(|c| mutate(&mut bytes, c));
            bytes
        })?;
    }
}
