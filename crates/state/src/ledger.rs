//! Which bytes each of several checkpoints needs: how many only it needs, and how many others need too.

use std::collections::HashMap;
use std::hash::Hash;
use std::ops::Range;

use deltabox_layers::{Frozen, Store};

use crate::catalog::CheckpointRecord;
use crate::contents::Contents;
use crate::error::Result;
use crate::id::SandboxId;
use crate::segments::{Saved, Segments};

/// What a checkpoint needs on disk.
#[derive(Clone)]
pub(crate) struct Needs {
    frozen: Frozen,
    saved: Option<Saved>,
    contents: Vec<String>,
}

impl Needs {
    pub fn of(node: &CheckpointRecord) -> Self {
        Self {
            frozen: node.frozen,
            saved: node.saved.clone(),
            contents: node.contents.clone().unwrap_or_default(),
        }
    }

    #[cfg(test)]
    pub fn nothing() -> Self {
        let frozen = serde_json::from_str(r#"{"volume":1,"top":"base"}"#);
        Self {
            frozen: frozen.expect("a frozen state"),
            saved: None,
            contents: Vec::new(),
        }
    }
}

/// Where what checkpoints need is.
pub(crate) struct Disk<'a> {
    pub store: &'a Store,
    pub segments: &'a Segments,
    pub contents: &'a Contents,
}

impl Disk<'_> {
    /// Accounts for checkpoints of a sandbox. Looks at each file of a state the first time it is asked.
    pub fn ledger(&self, sandbox: &SandboxId, checkpoints: &[Needs]) -> Result<Ledger> {
        let (mut segments, mut contents) = (Files::from(SEGMENTS), Files::from(CONTENTS));
        let mut all = Vec::with_capacity(checkpoints.len());
        for needs in checkpoints {
            let mut ranges = match self.store.places(&needs.frozen) {
                Err(error) if is_missing(&error) => Vec::new(),
                places => places?,
            };
            for id in needs.saved.iter().flat_map(Saved::all) {
                ranges.push(segments.place(id, || self.segments.bytes(id).unwrap_or(0)));
            }
            for name in &needs.contents {
                ranges.push(contents.place(name, || self.contents.bytes(sandbox, name)));
            }
            all.push(ranges);
        }
        Ok(Ledger::new(all))
    }
}

/// Whether it says that a state, or a part of it, has been removed meanwhile.
fn is_missing(error: &deltabox_layers::Error) -> bool {
    let gone = rustix::io::Errno::NOENT.raw_os_error();
    matches!(error, deltabox_layers::Error::Missing(_)) || error.os_error() == Some(gone)
}

/// Addresses of files that are shared as a whole begin here, beyond those of the store.
const SEGMENTS: u64 = 2 << 62;
const CONTENTS: u64 = 3 << 62;

/// Gives each file a range of addresses of its own.
struct Files<K> {
    next: u64,
    given: HashMap<K, Range<u64>>,
}

impl<K: Hash + Eq> Files<K> {
    fn from(next: u64) -> Self {
        Self {
            next,
            given: HashMap::new(),
        }
    }

    fn place(&mut self, file: K, bytes: impl FnOnce() -> u64) -> Range<u64> {
        let next = &mut self.next;
        let given = self.given.entry(file).or_insert_with(|| {
            let start = *next;
            *next += bytes();
            start..*next
        });
        given.clone()
    }
}

/// Accounts for checkpoints by their number. What they need is given as ranges of addresses; the same address is the same
/// byte.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// Where any range begins or ends, in order. Between two neighbours all bytes have the same users.
    bounds: Vec<u64>,
    /// How many checkpoints need the bytes between a bound and the next.
    users: Vec<u32>,
    /// Ranges of places in `bounds`, in order and apart from each other.
    needs: Vec<Vec<Range<usize>>>,
}

/// Bytes of all checkpoints together, each counted once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sum {
    /// Of which each is needed by one checkpoint only.
    pub private: u64,
    /// Which several need.
    pub shared: u64,
}

impl Ledger {
    pub fn new(needs: Vec<Vec<Range<u64>>>) -> Self {
        let needs: Vec<_> = needs.into_iter().map(joined).collect();
        let mut bounds: Vec<u64> = needs
            .iter()
            .flatten()
            .flat_map(|range| [range.start, range.end])
            .collect();
        bounds.sort_unstable();
        bounds.dedup();
        let place = |bound| bounds.partition_point(|other| *other < bound);
        let needs: Vec<Vec<Range<usize>>> = needs
            .iter()
            .map(|ranges| {
                ranges
                    .iter()
                    .map(|range| place(range.start)..place(range.end))
                    .collect()
            })
            .collect();
        let mut users = vec![0; bounds.len()];
        for place in needs.iter().flatten().cloned().flatten() {
            users[place] += 1;
        }
        Self { bounds, users, needs }
    }

    fn bytes(&self, place: usize) -> u64 {
        self.bounds[place + 1] - self.bounds[place]
    }

    fn count(&self, places: impl Iterator<Item = usize>) -> Sum {
        let mut sum = Sum::default();
        for place in places {
            match self.users[place] {
                0 => {}
                1 => sum.private += self.bytes(place),
                _ => sum.shared += self.bytes(place),
            }
        }
        sum
    }

    /// What one checkpoint needs: only it, and others too.
    pub fn of(&self, checkpoint: usize) -> Sum {
        self.count(self.needs[checkpoint].iter().cloned().flatten())
    }

    /// What all need: the private bytes of each, and the shared ones once.
    pub fn sum(&self) -> Sum {
        self.count(0..self.bounds.len().saturating_sub(1))
    }

    /// Takes a checkpoint out: what only it needed is needed by nobody then.
    pub fn remove(&mut self, checkpoint: usize) {
        for place in std::mem::take(&mut self.needs[checkpoint]).into_iter().flatten() {
            self.users[place] -= 1;
        }
    }
}

impl Sum {
    pub fn total(self) -> u64 {
        self.private + self.shared
    }
}

/// The same bytes as ranges in order that do not touch.
fn joined(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.retain(|range| range.start < range.end);
    ranges.sort_unstable_by_key(|range| range.start);
    let mut joined: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_byte_is_counted_as_what_it_is(
            needs in proptest::collection::vec(proptest::collection::vec((0u64..60, 0u64..9), 0..6), 0..6),
            removed in proptest::collection::vec(0usize..6, 0..4),
        ) {
            let needs: Vec<Vec<_>> = needs
                .into_iter()
                .map(|ranges| ranges.into_iter().map(|(start, length)| start..start + length).collect())
                .collect();
            let mut ledger = Ledger::new(needs.clone());
            let mut left: BTreeMap<usize, Vec<Range<u64>>> = needs.into_iter().enumerate().collect();
            for checkpoint in std::iter::once(None).chain(removed.into_iter().map(Some)) {
                if let Some(checkpoint) = checkpoint && left.remove(&checkpoint).is_some() {
                    ledger.remove(checkpoint);
                }
                let users = |byte: u64| left.values().filter(|n| n.iter().any(|r| r.contains(&byte))).count();
                let mut sum = Sum::default();
                for byte in 0..80 {
                    match users(byte) {
                        0 => {}
                        1 => sum.private += 1,
                        _ => sum.shared += 1,
                    }
                }
                prop_assert_eq!(ledger.sum(), sum);
                let mut private = 0;
                for (&checkpoint, needs) in &left {
                    let own = ledger.of(checkpoint);
                    private += own.private;
                    let bytes = (0..80u64).filter(|byte| needs.iter().any(|range| range.contains(byte)));
                    prop_assert_eq!(own.total(), bytes.count() as u64);
                }
                prop_assert_eq!(private, sum.private);
            }
        }
    }
}
