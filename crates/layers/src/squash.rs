//! Merging layers in the background, so that depth is not felt.
//!
//! A chain is kept short like a log-structured tree: a layer is merged with those above it while they are not much
//! smaller together. What results is a further layer that shows the same as all it covers; those stay as long as
//! a frozen state or a mount needs them. So no frozen state ever changes or gets slower to mount.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, FileType, Mode, XattrFlags, lsetxattr, lstat, mknodat};

use crate::copy::{Shift, copy_node, metadata};
use crate::error::{Context, Error, Result};
use crate::ids::LayerId;
use crate::nodes::{OPAQUE, REDIRECT};
use crate::stack::{Dir, Found, Stack};
use crate::store::Store;
use crate::tree::LayerName;
use crate::volume::Volume;

/// Chains shorter than this are left alone.
const LAYERS_WORTH_MERGING: usize = 4;
/// A layer is merged into the ones above it while it is at most this many times their size.
const RATIO: u64 = 4;
/// Layers with fewer entries than this count as this big: they are merged whatever the ratio.
const ENTRIES_SMALL: u64 = 64;

/// What merging did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Squashed {
    /// Layers to go through from the uppermost to the base.
    pub layers_before: usize,
    pub layers_after: usize,
}

/// Shortens the chain of `top` where that is worth it.
pub(crate) fn squash(store: &Store, volume: &Arc<Volume>, top: Option<LayerId>) -> Result<Squashed> {
    let _guard = volume
        .squashing
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    let missing = || Error::Missing(format!("a layer of volume {}", volume.id));
    let chain = volume.chain(top).ok_or_else(missing)?;
    let before = chain.len();
    // The mask belongs to the base: what is compared or exported lies above it.
    let layers: Vec<_> = chain
        .into_iter()
        .filter(|name| !matches!(name, LayerName::Mask { .. }))
        .collect();
    if layers.len() >= LAYERS_WORTH_MERGING {
        let sizes = layers
            .iter()
            .map(|name| volume.size(*name))
            .collect::<Result<Vec<_>>>()?;
        for run in runs(&sizes) {
            merge(store, volume, &layers[run])?;
        }
    }
    let after = volume.chain(top).ok_or_else(missing)?.len();
    Ok(Squashed {
        layers_before: before,
        layers_after: after,
    })
}

/// Merges neighbours of which only the uppermost is the top of a state or of something mounted: of what the lower ones
/// hold, nothing is seen but through it. With `all` wherever that is so, otherwise where it costs little. Returns how many
/// layers are not needed any more.
pub(crate) fn compact(
    store: &Store,
    volume: &Arc<Volume>,
    tops: &HashSet<LayerId>,
    all: bool,
) -> Result<usize> {
    let _guard = volume
        .squashing
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    let mut merged = 0;
    for run in hidden_runs(tops, |top| volume.chain(Some(top)).unwrap_or_default()) {
        let sizes = run
            .iter()
            .map(|name| volume.size(*name))
            .collect::<Result<Vec<_>>>()?;
        let ranges = if all {
            vec![(0, run.len())]
        } else {
            ends(runs(&sizes))
        };
        for (start, end) in ranges {
            merge(store, volume, &run[start..end])?;
            merged += end - start;
        }
    }
    Ok(merged)
}

fn ends(ranges: Vec<std::ops::Range<usize>>) -> Vec<(usize, usize)> {
    ranges.into_iter().map(|range| (range.start, range.end)).collect()
}

/// Parts of the chains of these tops, uppermost first, of which each layer but the first lies below that one only.
fn hidden_runs(tops: &HashSet<LayerId>, chain: impl Fn(LayerId) -> Vec<LayerName>) -> Vec<Vec<LayerName>> {
    let chains: Vec<Vec<LayerName>> = tops.iter().map(|top| chain(*top)).collect();
    let mut above: HashMap<LayerName, HashSet<LayerName>> = HashMap::new();
    for pair in chains.iter().flat_map(|chain| chain.windows(2)) {
        above.entry(pair[1]).or_default().insert(pair[0]);
    }
    let hidden = |name: &LayerName| {
        let mask = matches!(name, LayerName::Mask { .. });
        !mask && !tops.contains(&name.top()) && above.get(name).is_some_and(|above| above.len() == 1)
    };
    let mut runs: Vec<Vec<LayerName>> = Vec::new();
    let mut seen = HashSet::new();
    for chain in &chains {
        let mut run: Vec<LayerName> = Vec::new();
        for name in chain {
            match hidden(name) {
                true => run.push(*name),
                false => {
                    runs.push(std::mem::take(&mut run));
                    run.extend((!matches!(name, LayerName::Mask { .. })).then_some(*name));
                }
            }
        }
        runs.push(run);
    }
    // Chains have their lower parts in common.
    runs.retain(|run| run.len() > 1 && seen.insert(run[0]));
    runs
}

/// Which neighbours to merge, given their sizes, uppermost first.
fn runs(sizes: &[u64]) -> Vec<std::ops::Range<usize>> {
    let mut runs = Vec::new();
    let mut start = 0;
    while start < sizes.len() {
        let mut sum = sizes[start];
        let mut end = start + 1;
        while end < sizes.len() && sizes[end] <= RATIO * sum.max(ENTRIES_SMALL) {
            sum += sizes[end];
            end += 1;
        }
        if end - start > 1 {
            runs.push(start..end);
        }
        start = end;
    }
    runs
}

/// Makes one layer of several neighbours of a chain (uppermost first). It appears only when it is complete and on disk.
fn merge(store: &Store, volume: &Arc<Volume>, run: &[LayerName]) -> Result<()> {
    let (Some(first), Some(last)) = (run.first(), run.last()) else {
        return Ok(());
    };
    let name = LayerName::Merged {
        id: store.next_layer()?,
        top: first.top(),
        below: last.below(),
    };
    let draft = volume.path.join("layers").join(format!("draft.{}", name.id()));
    let stack = Stack {
        layers: run.iter().map(|name| volume.layer_path(*name)).collect(),
    };
    let mut merger = Merger {
        stack: &stack,
        links: HashMap::new(),
        entries: 0,
    };
    let built = fs::create_dir(&draft)
        .doing("creating", &draft)
        .and_then(|()| merger.directory(&stack.root(), &draft))
        .and_then(|()| store.flush())
        .and_then(|()| {
            let path = volume.layer_path(name);
            fs::rename(&draft, &path).doing("publishing a merged layer", &path)
        });
    if let Err(error) = built {
        let _ = fs::remove_dir_all(&draft);
        return Err(error);
    }
    volume.remember_size(name, merger.entries);
    volume.insert(name);
    Ok(())
}

struct Merger<'a> {
    stack: &'a Stack,
    /// Copies of files that have several names, by layer and inode number.
    links: HashMap<(usize, u64), PathBuf>,
    entries: u64,
}

impl Merger<'_> {
    /// Fills `to` with what the layers say about a directory, and gives it the directory's metadata.
    fn directory(&mut self, dir: &Dir, to: &Path) -> Result<()> {
        for (name, found) in self.stack.list(dir)? {
            let path = to.join(&name);
            self.entries += 1;
            match found {
                Found::Absent(_) => {}
                // Where nothing shows through there is nothing to hide.
                Found::Whiteout if dir.below.is_none() => {}
                Found::Whiteout => {
                    mknodat(CWD, &path, FileType::CharacterDevice, Mode::empty(), 0)
                        .doing("hiding", &path)?;
                }
                Found::Node {
                    layer,
                    path: from,
                    stat,
                } => {
                    let key = (layer, stat.st_ino);
                    if let Some(copy) = self.links.get(&key) {
                        fs::hard_link(copy, &path).doing("linking", &path)?;
                        continue;
                    }
                    copy_node(&self.stack.real(layer, &from), &stat, &path, Shift::default())?;
                    if stat.st_nlink > 1 {
                        self.links.insert(key, path);
                    }
                }
                Found::Dir(child, _) => {
                    fs::create_dir(&path).doing("creating", &path)?;
                    let implied = dir.below.as_ref().map(|below| below.join(&name));
                    mark(&path, &child, dir, implied.as_deref())?;
                    self.directory(&child, &path)?;
                }
            }
        }
        let (layer, path) = dir.parts.first().expect("a directory is somewhere");
        let real = self.stack.real(*layer, path);
        let stat = lstat(&real).doing("reading", &real)?;
        metadata(&real, &stat, Shift::default())?.apply(to)
    }
}

/// Says what shows through a merged directory from below, where it is not what its place implies.
fn mark(path: &Path, dir: &Dir, parent: &Dir, implied: Option<&Path>) -> Result<()> {
    match &dir.below {
        None if parent.below.is_none() => Ok(()),
        None => lsetxattr(path, OPAQUE, b"y", XattrFlags::empty()).doing("making opaque", path),
        Some(below) if Some(below.as_path()) == implied => Ok(()),
        Some(below) => {
            let target = Path::new("/").join(below);
            lsetxattr(
                path,
                REDIRECT,
                target.as_os_str().as_encoded_bytes(),
                XattrFlags::empty(),
            )
            .doing("redirecting", path)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_one_layer_covers_is_merged_with_it() {
        let id = LayerId;
        let plain = |number, parent| LayerName::Plain {
            id: id(number),
            parent: Some(id(parent)),
        };
        // 1 (mask) - 2 - 3 - 4 - 5 - 6, and 7 - 8 on 3.
        let mut tree = crate::tree::Tree::default();
        tree.insert(LayerName::Mask { id: id(1) });
        for (number, parent) in [(2, 1), (3, 2), (4, 3), (5, 4), (6, 5), (7, 3), (8, 7)] {
            tree.insert(plain(number, parent));
        }
        let found = |tops: &[u64]| -> Vec<Vec<u64>> {
            let tops = tops.iter().map(|top| id(*top)).collect();
            let runs = hidden_runs(&tops, |top| tree.chain(Some(top)).unwrap());
            let mut numbers: Vec<Vec<u64>> = runs
                .iter()
                .map(|run| run.iter().map(|name| name.id().0).collect())
                .collect();
            numbers.sort();
            numbers
        };
        assert_eq!(found(&[6]), [[6, 5, 4, 3, 2]]);
        assert_eq!(found(&[6, 4]), [vec![4, 3, 2], vec![6, 5]]);
        assert_eq!(found(&[6, 8]), [vec![3, 2], vec![6, 5, 4], vec![8, 7]]);
        assert_eq!(found(&[6, 5, 4, 3, 2]), Vec::<Vec<u64>>::new());
        assert_eq!(found(&[2]), Vec::<Vec<u64>>::new());
        assert_eq!(found(&[]), Vec::<Vec<u64>>::new());
    }

    #[test]
    fn chains_become_logarithmic() {
        assert!(runs(&[1000]).is_empty());
        let spans = |sizes: &[u64]| -> Vec<(usize, usize)> {
            runs(sizes).into_iter().map(|run| (run.start, run.end)).collect()
        };
        assert_eq!(spans(&[3, 4, 5]), [(0, 3)]);
        // A large layer is not copied for a few small ones on it, however often.
        assert_eq!(spans(&[3, 4, 5, 100_000]), [(0, 3)]);
        assert_eq!(spans(&[3, 100_000, 100_000, 90_000, 5_000_000]), [(1, 4)]);

        let mut chain: Vec<u64> = Vec::new();
        let mut copied = 0;
        for _ in 0..10_000 {
            chain.insert(0, 20);
            if chain.len() >= LAYERS_WORTH_MERGING {
                for run in runs(&chain).into_iter().rev() {
                    let sum: u64 = chain[run.clone()].iter().sum();
                    copied += sum;
                    chain.splice(run, [sum]);
                }
            }
            assert!(chain.len() <= 12, "{chain:?}");
        }
        assert!(
            copied < 10_000 * 20 * 30,
            "each entry is copied {} times",
            copied / 200_000
        );
    }
}
