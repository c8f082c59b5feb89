//! What is different between two states. Looks only where their own layers say something.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::Stat;

use crate::copy::{Shift, metadata};
use crate::error::Result;
use crate::stack::{Dir, Found, Stack};
use crate::tree::LayerName;
use crate::view::{Entry, EntryKind, FileView};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    Added,
    Changed,
    Deleted,
}

/// One path that two states do not show alike.
#[derive(Clone, Debug)]
pub struct Change {
    /// Relative to the root; empty for the root itself.
    pub path: PathBuf,
    pub kind: ChangeKind,
    /// `None` when added.
    pub before: Option<Entry>,
    /// `None` when deleted. A deleted directory stands for all it held.
    pub after: Option<Entry>,
    /// For two regular files: whether the content differs, and not only metadata.
    pub content_changed: bool,
    /// An added directory that is a renamed one: what follows below it is only what changed besides.
    pub moved_from: Option<PathBuf>,
}

/// The differences of two texts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TextDiff {
    /// In unified format; empty when the texts are equal.
    Text(String),
    /// One of the two is not text.
    Binary,
    /// One of the two is larger than [`TEXT_BYTES_MAX`].
    TooLarge,
}

/// Longest file that is compared as text.
pub const TEXT_BYTES_MAX: u64 = 8 << 20;

/// Files are stamped by a clock that ticks this often at least.
const TICK_MAX: Duration = Duration::from_millis(20);

impl FileView {
    /// What changed from this state to `to`, which is on the same base, sorted by path.
    ///
    /// # Errors
    /// Failed system calls.
    pub fn diff(&self, to: &FileView) -> Result<Vec<Change>> {
        Comparison::new(self, to, false).run()
    }

    /// What this state is, relative to its base: as [`Self::diff`], but nothing is abbreviated: all that a renamed
    /// directory holds counts as added. Made for formats that know no renames.
    ///
    /// # Errors
    /// Failed system calls.
    pub fn changes_to_base(&self) -> Result<Vec<Change>> {
        let base = self.stack.layers.len() - self.base.len();
        let masks = usize::from(self.masked());
        let of_base = Stack {
            layers: self.stack.layers[base - masks..].to_vec(),
        };
        let comparison = Comparison {
            own_before: 0,
            own_after: base - masks,
            before: of_base,
            after: self.stack.clone(),
            expand: true,
            settled: None,
            changes: Vec::new(),
        };
        comparison.run()
    }

    fn masked(&self) -> bool {
        let chain = self.volume.chain(self.parent).unwrap_or_default();
        matches!(chain.last(), Some(LayerName::Mask { .. }))
    }

    /// The text of `path` in this state compared with that in `to`, in unified format. A missing file counts as
    /// empty.
    ///
    /// # Errors
    /// Failed system calls.
    pub fn text_diff(&self, to: &FileView, path: &Path) -> Result<TextDiff> {
        let (before, after) = (self.text(path)?, to.text(path)?);
        Ok(match (before, after) {
            (Text::TooLarge, _) | (_, Text::TooLarge) => TextDiff::TooLarge,
            (Text::Is(before), Text::Is(after)) => {
                let name = path.to_string_lossy();
                let name = name.trim_start_matches('/');
                let diff = similar::TextDiff::from_lines(&before, &after);
                let mut unified = diff.unified_diff();
                TextDiff::Text(
                    unified
                        .header(&format!("a/{name}"), &format!("b/{name}"))
                        .to_string(),
                )
            }
            _ => TextDiff::Binary,
        })
    }

    fn text(&self, path: &Path) -> Result<Text> {
        let Some(entry) = self.entry(path)? else {
            return Ok(Text::Is(String::new()));
        };
        if entry.kind != EntryKind::File {
            return Ok(Text::IsNot);
        }
        let mut bytes = Vec::new();
        let read = entry.open()?.take(TEXT_BYTES_MAX + 1).read_to_end(&mut bytes);
        crate::error::Context::doing(read, "reading", &entry.real)?;
        if bytes.len() as u64 > TEXT_BYTES_MAX {
            return Ok(Text::TooLarge);
        }
        Ok(match String::from_utf8(bytes) {
            Ok(text) if !text.contains('\0') => Text::Is(text),
            _ => Text::IsNot,
        })
    }
}

enum Text {
    Is(String),
    IsNot,
    TooLarge,
}

/// Two stacks whose lower parts are the same layers.
struct Comparison {
    before: Stack,
    after: Stack,
    /// How many of the uppermost layers are not shared.
    own_before: usize,
    own_after: usize,
    /// Whether to show all that a renamed directory holds.
    expand: bool,
    /// Files changed before this moment, which two snapshots show with the same times, are the same.
    settled: Option<SystemTime>,
    changes: Vec<Change>,
}

impl Comparison {
    fn new(a: &FileView, b: &FileView, expand: bool) -> Self {
        let settled = match (a.taken, b.taken) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (one, other) => one.or(other),
        };
        let (own_before, own_after, shared) = split(a, b);
        let stack = |own: &[PathBuf]| Stack {
            layers: own.iter().chain(&shared).cloned().collect(),
        };
        Self {
            before: stack(&own_before),
            after: stack(&own_after),
            own_before: own_before.len(),
            own_after: own_after.len(),
            expand,
            settled,
            changes: Vec::new(),
        }
    }

    fn run(mut self) -> Result<Vec<Change>> {
        let (before, after) = (self.before.find(Path::new(""))?, self.after.find(Path::new(""))?);
        self.pair(PathBuf::new(), before, after)?;
        self.changes.sort_by(|one, other| one.path.cmp(&other.path));
        Ok(self.changes)
    }

    /// Compares what both states show under one path.
    fn pair(&mut self, path: PathBuf, before: Found, after: Found) -> Result<()> {
        match (before, after) {
            (Found::Dir(one, one_stat), Found::Dir(other, other_stat)) => {
                self.directories(path, (&one, one_stat), (&other, other_stat))
            }
            (
                Found::Node {
                    layer: one_layer,
                    path: one,
                    stat: one_stat,
                },
                Found::Node {
                    layer: other_layer,
                    path: other,
                    stat: other_stat,
                },
            ) => {
                let shared = one_layer.checked_sub(self.own_before);
                if shared.is_some() && shared == other_layer.checked_sub(self.own_after) && one == other {
                    return Ok(());
                }
                let one = (Entry::new(&self.before, one_layer, &one, &one_stat), one_stat);
                let other = (
                    Entry::new(&self.after, other_layer, &other, &other_stat),
                    other_stat,
                );
                self.files(path, one, other)
            }
            (before, after) => {
                let entry = |stack: &Stack, found: &Found| match found {
                    Found::Node { layer, path, stat } => Some(Entry::new(stack, *layer, path, stat)),
                    Found::Dir(dir, stat) => Some(dir_entry(stack, dir, stat)),
                    Found::Absent(_) | Found::Whiteout => None,
                };
                let (before, seen) = (entry(&self.before, &before), entry(&self.after, &after));
                let kind = match (&before, &seen) {
                    (None, None) => return Ok(()),
                    (None, Some(_)) => ChangeKind::Added,
                    (Some(_), Some(_)) => ChangeKind::Changed,
                    (Some(_), None) => ChangeKind::Deleted,
                };
                let origin = match &after {
                    Found::Dir(dir, _) if !self.expand => self.origin(dir)?,
                    _ => None,
                };
                self.changes.push(Change {
                    path: path.clone(),
                    kind,
                    before,
                    after: seen,
                    content_changed: false,
                    moved_from: origin.as_ref().map(|(path, _)| path.clone()),
                });
                match after {
                    Found::Dir(dir, _) => self.contents(path, origin.as_ref().map(|(_, dir)| dir), &dir),
                    _ => Ok(()),
                }
            }
        }
    }

    /// The directory before, of which `dir` shows the shared part under another path.
    fn origin(&self, dir: &Dir) -> Result<Option<(PathBuf, Dir)>> {
        let shared = shared_parts(dir, self.own_after);
        let Some((_, path)) = shared.first() else {
            return Ok(None);
        };
        let found = self.before.find(path)?;
        Ok(match found {
            Found::Dir(origin, _) if shared_parts(&origin, self.own_before) == shared => {
                Some((path.to_path_buf(), origin))
            }
            _ => None,
        })
    }

    fn directories(&mut self, path: PathBuf, before: (&Dir, Stat), after: (&Dir, Stat)) -> Result<()> {
        let one = dir_entry(&self.before, before.0, &before.1);
        let other = dir_entry(&self.after, after.0, &after.1);
        let a = metadata(&one.real, &before.1, Shift::default())?;
        let b = metadata(&other.real, &after.1, Shift::default())?;
        if (a.uid, a.gid, a.mode, a.xattrs) != (b.uid, b.gid, b.mode, b.xattrs) {
            self.changes.push(Change {
                path: path.clone(),
                kind: ChangeKind::Changed,
                before: Some(one),
                after: Some(other),
                content_changed: false,
                moved_from: None,
            });
        }
        self.contents(path, Some(before.0), after.0)
    }

    fn contents(&mut self, path: PathBuf, before: Option<&Dir>, after: &Dir) -> Result<()> {
        for name in self.names(before, after)? {
            let one = match before {
                Some(dir) => self.before.lookup(dir, &name)?,
                None => Found::Whiteout,
            };
            let other = self.after.lookup(after, &name)?;
            self.pair(path.join(&name), one, other)?;
        }
        Ok(())
    }

    /// Names to look at. Where both directories show the same of the shared layers, what only those say is the same.
    fn names(&self, before: Option<&Dir>, after: &Dir) -> Result<BTreeSet<OsString>> {
        let Some(before) = before else {
            return self.after.names(after, |_| true);
        };
        let same = shared_parts(before, self.own_before) == shared_parts(after, self.own_after);
        let mut names = self
            .before
            .names(before, |layer| !same || layer < self.own_before)?;
        names.extend(self.after.names(after, |layer| !same || layer < self.own_after)?);
        Ok(names)
    }

    fn files(&mut self, path: PathBuf, before: (Entry, Stat), after: (Entry, Stat)) -> Result<()> {
        let ((one, one_stat), (other, other_stat)) = (before, after);
        let same_kind = one.kind == other.kind;
        let content_changed = match (one.kind, other.kind) {
            (EntryKind::File, EntryKind::File) => {
                !self.untouched(&one_stat, &other_stat) && differs(&one, &other)?
            }
            (EntryKind::Symlink, EntryKind::Symlink) => one.target()? != other.target()?,
            _ => false,
        };
        let about = |entry: &Entry| {
            (
                entry.mode,
                entry.uid,
                entry.gid,
                entry.size,
                entry.mtime,
                entry.device,
            )
        };
        if same_kind && !content_changed && about(&one) == about(&other) && one.xattrs()? == other.xattrs()? {
            return Ok(());
        }
        self.changes.push(Change {
            path,
            kind: ChangeKind::Changed,
            before: Some(one),
            after: Some(other),
            content_changed,
            moved_from: None,
        });
        Ok(())
    }

    /// Whether two snapshots show one file that was not written to in between.
    fn untouched(&self, one: &Stat, other: &Stat) -> bool {
        let Some(settled) = self.settled else { return false };
        let stamp = |stat: &Stat| {
            (
                stat.st_ino,
                stat.st_size,
                stat.st_ctime,
                stat.st_ctime_nsec,
                stat.st_mtime,
                stat.st_mtime_nsec,
            )
        };
        let nanoseconds = Duration::from_nanos(one.st_ctime_nsec as u64);
        let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(one.st_ctime.max(0) as u64) + nanoseconds;
        stamp(one) == stamp(other) && changed + TICK_MAX < settled
    }
}

fn dir_entry(stack: &Stack, dir: &Dir, stat: &Stat) -> Entry {
    let (layer, path) = dir.parts.first().expect("a directory is somewhere");
    Entry::new(stack, *layer, path, stat)
}

fn shared_parts(dir: &Dir, own: usize) -> Vec<(usize, &Path)> {
    dir.parts
        .iter()
        .filter(|(layer, _)| *layer >= own)
        .map(|(layer, path)| (layer - own, path.as_path()))
        .collect()
}

fn differs(one: &Entry, other: &Entry) -> Result<bool> {
    use crate::error::Context;
    if one.size != other.size {
        return Ok(true);
    }
    let (mut first, mut second) = (one.open()?, other.open()?);
    let (mut left, mut right) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        let length = first.read(&mut left).doing("reading", &one.real)?;
        if length == 0 {
            return Ok(second.read(&mut right).doing("reading", &other.real)? != 0);
        }
        if second.read_exact(&mut right[..length]).is_err() || left[..length] != right[..length] {
            return Ok(true);
        }
    }
}

/// Splits two chains into what each has of its own and what both have in common.
fn split(a: &FileView, b: &FileView) -> (Vec<PathBuf>, Vec<PathBuf>, Vec<PathBuf>) {
    let plain = (a.volume.plain_chain(a.parent), b.volume.plain_chain(b.parent));
    let (one, other, from_plain) = match plain {
        (Some(one), Some(other)) => (one, other, true),
        // Layers that only merged ones need were removed: what is common to the chains in use is all that is known.
        _ => {
            let chain = |view: &FileView| view.volume.chain(view.parent).unwrap_or_default();
            (chain(a), chain(b), false)
        }
    };
    let common = one
        .iter()
        .rev()
        .zip(other.iter().rev())
        .take_while(|(one, other)| one.id() == other.id())
        .count();
    let own = |view: &FileView, chain: &[LayerName]| -> Vec<PathBuf> {
        let names = match from_plain {
            true => view.volume.chain_down_to(&chain[..chain.len() - common]),
            false => chain[..chain.len() - common].to_vec(),
        };
        let layers = names.into_iter().map(|name| view.volume.layer_path(name));
        view.own.clone().into_iter().chain(layers).collect()
    };
    let shared_names = match from_plain {
        true => a.volume.chain_down_to(&one[one.len() - common..]),
        false => one[one.len() - common..].to_vec(),
    };
    let shared = shared_names
        .into_iter()
        .map(|name| a.volume.layer_path(name))
        .chain(a.base.clone())
        .collect();
    (own(a, &one), own(b, &other), shared)
}
