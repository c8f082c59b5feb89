use std::os::unix::fs::FileExt;

use deltabox_process::shared::SharedImage;
use deltabox_process::{Image, PageStore, PageTree};

use super::*;

/// A state whose only memory is one shared object.
fn state(pages: PageTree) -> SavedState {
    let shared = SharedImage {
        key: ((1, 2), 3),
        name: "/dev/zero (deleted)".into(),
        size: 1 << 20,
        seals: 0,
        pages,
    };
    SavedState {
        image: Image {
            shared: vec![shared],
            ..Image::default()
        },
        execs: vec!["e1".into()],
        externals: Vec::new(),
    }
}

fn page(tag: u32) -> [u8; PAGE] {
    let mut bytes = [0; PAGE];
    let mut state = u64::from(tag) + 1;
    for byte in &mut bytes {
        // Nothing that can be compressed.
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        *byte = (state >> 56) as u8;
    }
    bytes[..4].copy_from_slice(&tag.to_le_bytes());
    bytes
}

fn one_page(store: &PageStore) -> PageTree {
    let mut tree = PageTree::new();
    tree.set(1, store.put(&page(1)));
    tree
}

fn contents(tree: &PageTree) -> Vec<(u64, u32)> {
    let mut found = Vec::new();
    tree.for_each(0, 1 << 40, &mut |number, page| {
        found.push((number, u32::from_le_bytes(*page.bytes().first_chunk().unwrap())));
    });
    found
}

fn pages(state: &SavedState) -> Vec<(u64, u32)> {
    contents(&state.image.shared[0].pages)
}

fn open(directory: &tempfile::TempDir, needed: &[SegmentId]) -> Segments {
    Segments::open(
        directory.path().join("segments"),
        &needed.iter().copied().collect(),
    )
    .unwrap()
}

#[test]
fn states_come_back_and_only_what_changed_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let store = PageStore::new();
    let mut tree = PageTree::new();
    for number in 0..1000 {
        tree.set(number, store.put(&page(number as u32)));
    }
    tree.set(5000, PageRef::zero());
    let wanted = contents(&tree);
    let segments = open(&directory, &[]);
    let first = segments.write(state(tree.clone())).unwrap();
    tree.set(6, store.put(&page(777)));
    tree.remove(0, 1);
    let changed = contents(&tree);
    let second = segments.write(state(tree)).unwrap();
    assert_eq!(first.pages, [first.segment]);
    assert_eq!(second.pages, [first.segment, second.segment]);
    assert!(
        second.bytes * 100 < first.bytes,
        "{} and {}",
        second.bytes,
        first.bytes
    );

    // In another process: nothing is in memory.
    let (segments, store) = (
        open(&directory, &[first.segment, second.segment]),
        PageStore::new(),
    );
    let read = segments.read(second.segment, &store).unwrap();
    assert_eq!(pages(&read), changed);
    assert_eq!(read.execs, ["e1".into()]);
    let bytes = store.bytes();
    let other = segments.read(first.segment, &store).unwrap();
    assert_eq!(pages(&other), wanted);
    // Two pages are not in the second state, all others are shared in memory.
    assert_eq!(store.bytes() - bytes, 2 * PAGE as u64);
    // What has been read is not written again.
    let third = segments.write(read).unwrap();
    assert_eq!(third.pages, second.pages);
    assert!(third.segment > second.segment);
    drop((other, store));
}

#[test]
fn what_nobody_needs_is_removed_when_opened() {
    let directory = tempfile::tempdir().unwrap();
    let store = PageStore::new();
    let tree = one_page(&store);
    let segments = open(&directory, &[]);
    let kept = segments.write(state(tree.clone())).unwrap();
    let other = segments.write(state(PageTree::new())).unwrap();
    fs::write(directory.path().join("segments/00000099.new"), "half").unwrap();
    let segments = open(&directory, &[kept.segment]);
    assert!(segments.check(kept.segment).is_ok());
    assert!(segments.check(other.segment).is_err());
    assert_eq!(
        fs::read_dir(directory.path().join("segments")).unwrap().count(),
        1
    );
    // A page whose segment has gone is written again.
    segments.remove([kept.segment]);
    let again = segments.write(state(tree)).unwrap();
    assert_eq!(again.pages, [again.segment]);
    assert_ne!(again.segment, kept.segment);
}

#[test]
fn every_damage_is_found() {
    let directory = tempfile::tempdir().unwrap();
    let store = PageStore::new();
    let mut tree = PageTree::new();
    for number in 0..70 {
        let mut bytes = [7; PAGE];
        bytes[..4].copy_from_slice(&(number as u32).to_le_bytes());
        tree.set(number, store.put(&bytes));
    }
    let segments = open(&directory, &[]);
    let saved = segments.write(state(tree)).unwrap();
    let path = segments.path(saved.segment);
    let good = fs::read(&path).unwrap();
    let same = |state: &SavedState| pages(state) == (0..70).map(|n| (n, n as u32)).collect::<Vec<_>>();
    let reread = || open(&directory, &[saved.segment]).read(saved.segment, &PageStore::new());
    assert!(same(&reread().unwrap()));
    let file = File::options().write(true).open(&path).unwrap();
    for at in 0..good.len() {
        file.write_all_at(&[good[at] ^ 0x20], at as u64).unwrap();
        let result = reread();
        assert!(result.is_err(), "byte {at} of {}", good.len());
        file.write_all_at(&[good[at]], at as u64).unwrap();
    }
    for length in [0, 7, 8, 100, good.len() - 25, good.len() - 24, good.len() - 1] {
        fs::write(&path, &good[..length]).unwrap();
        assert!(reread().is_err(), "{length} bytes");
    }
    let mut other = good.clone();
    other[7] = 1;
    fs::write(&path, &other).unwrap();
    let error = reread().err().unwrap().to_string();
    assert!(error.contains("version 1"), "{error}");
    fs::write(&path, &good).unwrap();
    assert!(same(&reread().unwrap()));
}

#[test]
fn a_page_of_a_lost_segment_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let store = PageStore::new();
    let tree = one_page(&store);
    let segments = open(&directory, &[]);
    let first = segments.write(state(tree.clone())).unwrap();
    let second = segments.write(state(tree)).unwrap();
    fs::remove_file(segments.path(first.segment)).unwrap();
    let error = segments.check(first.segment).unwrap_err().to_string();
    assert!(error.contains("missing"), "{error}");
    assert!(segments.check(second.segment).is_ok());
    drop(store);
    let fresh = open(&directory, &[first.segment, second.segment]);
    assert!(!fresh.has(&second));
    let error = fresh
        .read(second.segment, &PageStore::new())
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("missing"), "{error}");
}

#[test]
fn a_long_history_needs_few_segments_and_old_ones_go() {
    let directory = tempfile::tempdir().unwrap();
    let store = PageStore::new();
    let segments = open(&directory, &[]);
    let mut tree = PageTree::new();
    for number in 0..400 {
        tree.set(number, store.put(&page(number as u32)));
    }
    let mut history = Vec::new();
    let mut bytes = 0;
    for step in 0..150u64 {
        // Two pages change, one of them each time.
        tree.set(step, store.put(&page(10_000 + step as u32)));
        tree.set(399, store.put(&page(20_000 + step as u32)));
        let saved = segments.write(state(tree.clone())).unwrap();
        assert!(
            saved.pages.len() <= MOST_SEGMENTS,
            "{} segments",
            saved.pages.len()
        );
        bytes += saved.bytes;
        history.push((saved, contents(&tree)));
    }
    // Every page is written a few times at the most, however long the history.
    assert!(bytes < (400 + 150 * 2) * 4 * PAGE as u64, "{bytes} bytes");
    let store = PageStore::new();
    for (saved, wanted) in &history {
        assert_eq!(pages(&segments.read(saved.segment, &store).unwrap()), *wanted);
    }
    // When only the last one is left, so are only the segments it needs.
    let (last, wanted) = history.last().unwrap();
    let needed: BTreeSet<SegmentId> = last.all().collect();
    segments.remove(
        history
            .iter()
            .map(|(saved, _)| saved.segment)
            .filter(|id| !needed.contains(id)),
    );
    let files = fs::read_dir(directory.path().join("segments")).unwrap().count();
    assert!(files <= MOST_SEGMENTS + 1, "{files} files");
    assert!(segments.has(last) && !segments.has(&history[100].0));
    let segments = open(&directory, &needed.into_iter().collect::<Vec<_>>());
    assert_eq!(
        pages(&segments.read(last.segment, &PageStore::new()).unwrap()),
        *wanted
    );
}
