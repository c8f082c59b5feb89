//! The process halves of checkpoints on disk: one file, a *segment*, per checkpoint, which holds the pages that no
//! earlier one has and says where the others are.
//!
//! A checkpoint needs a bounded number of segments: of those that have the fewest of its pages it takes the pages over, or
//! a few pages would keep every segment of a long history, and a restore would read them all.
//!
//! A segment is written in the background, and is there as a whole or not at all: written aside, synced, renamed. It
//! goes with the last checkpoint that needs it.

mod format;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use deltabox_process::{PageRef, PageStore, PageTree, WeakPage};
use serde::{Deserialize, Serialize};

use crate::steps;
pub(crate) use format::SavedState;
use format::{Description, FRAME_PAGES, PAGE, Place, Run, Writer, damaged};

/// A checkpoint that would need more segments than this writes pages again, so that it needs half as many.
const MOST_SEGMENTS: usize = 32;

/// Names a segment; given once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct SegmentId(u32);

/// What a checkpoint needs of the segments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Saved {
    /// The one that describes it.
    pub segment: SegmentId,
    /// All that its pages are in.
    pub pages: Vec<SegmentId>,
    /// Size of its own.
    pub bytes: u64,
}

impl Saved {
    /// Every segment that is needed.
    pub fn all(&self) -> impl Iterator<Item = SegmentId> + '_ {
        self.pages.iter().copied().chain([self.segment])
    }
}

/// All segments of a state directory.
pub(crate) struct Segments {
    directory: PathBuf,
    known: Mutex<Known>,
    /// Pages that are on disk and in use, by where they are.
    read: Mutex<HashMap<u64, WeakPage>>,
    /// How many of these there may be before those that are not in use are looked for.
    forget_at: AtomicUsize,
}

type Present = HashMap<SegmentId, u64>;

#[derive(Default)]
struct Known {
    next: u32,
    /// With their sizes. Shared with whoever writes a segment.
    present: Arc<Present>,
}

impl Segments {
    /// Opens the directory, making it if there is none, and removes what no checkpoint needs.
    pub fn open(directory: PathBuf, needed: &BTreeSet<SegmentId>) -> io::Result<Self> {
        fs::create_dir_all(&directory)?;
        let mut present = Present::new();
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            match id_of(&entry.file_name().to_string_lossy()) {
                Some(id) if needed.contains(&id) => {
                    present.insert(id, entry.metadata()?.len());
                }
                // Half written, or of a checkpoint that was never in the catalog.
                _ => fs::remove_file(entry.path())?,
            }
        }
        let known = Known {
            // A number that is still named somewhere must not be given again, even if its file is lost.
            next: needed.last().map_or(1, |last| last.0 + 1),
            present: Arc::new(present),
        };
        Ok(Self {
            directory,
            known: Mutex::new(known),
            read: Mutex::default(),
            forget_at: AtomicUsize::default(),
        })
    }

    fn path(&self, id: SegmentId) -> PathBuf {
        self.directory.join(format!("{:08x}", id.0))
    }

    /// Writes a state, and notes in its pages where they are. On an error nothing is left.
    pub fn write(&self, state: SavedState) -> io::Result<Saved> {
        let (id, present) = {
            let mut known = self.known.lock().expect("not poisoned");
            known.next += 1;
            (SegmentId(known.next - 1), known.present.clone())
        };
        let aside = self.directory.join(format!("{:08x}.new", id.0));
        let written = write_file(&aside, id, &present, state).and_then(|done| {
            drop(present);
            steps::rename(&aside, &self.path(id))?;
            steps::sync(&File::open(&self.directory)?)?;
            Ok(done)
        });
        let (bytes, pages, placed) = written.inspect_err(|_| {
            for path in [&aside, &self.path(id)] {
                let _ = fs::remove_file(path);
            }
        })?;
        let mut known = self.known.lock().expect("not poisoned");
        Arc::make_mut(&mut known.present).insert(id, bytes);
        drop(known);
        let mut read = self.read.lock().expect("not poisoned");
        for (page, place) in placed {
            page.note_copy(place.packed());
            read.insert(place.packed(), page.downgrade());
        }
        drop(read);
        self.forget_pages();
        Ok(Saved {
            segment: id,
            pages,
            bytes,
        })
    }

    /// Reads a state back. Pages that are in memory already are shared.
    pub fn read(&self, id: SegmentId, store: &PageStore) -> io::Result<SavedState> {
        let mut reader = Reader {
            segments: self,
            store,
            open: HashMap::new(),
        };
        let Description { trees, mut state, .. } = reader.description(id)?;
        let count = state.image.processes.len() + state.image.shared.len();
        if trees.len() != count {
            return Err(damaged("it has pages of other processes"));
        }
        let mut trees = trees.into_iter();
        for process in &mut state.image.processes {
            let runs = trees.next().unwrap_or_default();
            std::sync::Arc::make_mut(process).pages = reader.tree(&runs)?;
        }
        for shared in &mut state.image.shared {
            shared.pages = reader.tree(&trees.next().unwrap_or_default())?;
        }
        Ok(state)
    }

    /// Whether everything that is needed is there.
    pub fn has(&self, saved: &Saved) -> bool {
        let known = self.known.lock().expect("not poisoned");
        saved.all().all(|id| known.present.contains_key(&id))
    }

    /// The size of a segment, if it is there.
    pub fn bytes(&self, id: SegmentId) -> Option<u64> {
        self.known.lock().expect("not poisoned").present.get(&id).copied()
    }

    /// Reads every byte of a segment; tells what is wrong with it.
    pub fn check(&self, id: SegmentId) -> io::Result<()> {
        let file = self.open_file(id)?;
        let description = format::describe(&file)?;
        for frame in &description.frames {
            format::read_pages(&file, *frame)?;
        }
        Ok(())
    }

    /// Removes those of `unneeded` that nobody needs any more.
    pub fn remove(&self, unneeded: impl IntoIterator<Item = SegmentId>) {
        for id in unneeded {
            let mut known = self.known.lock().expect("not poisoned");
            Arc::make_mut(&mut known.present).remove(&id);
            drop(known);
            if let Err(error) = steps::remove_file(&self.path(id))
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(%error, segment = id.0, "a segment could not be removed");
            }
        }
        self.forget_pages();
    }

    /// Forgets pages that are not in use any more, when there may be as many as others.
    fn forget_pages(&self) {
        let mut read = self.read.lock().expect("not poisoned");
        if read.len() > self.forget_at.load(Ordering::Relaxed) {
            read.retain(|_, page| page.upgrade().is_some());
            let most = read.len() * 2 + 1024;
            read.shrink_to(most);
            self.forget_at.store(most, Ordering::Relaxed);
        }
    }

    fn open_file(&self, id: SegmentId) -> io::Result<File> {
        File::open(self.path(id)).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => damaged(format!("segment {:08x} is missing", id.0)),
            _ => error,
        })
    }
}

fn id_of(name: &str) -> Option<SegmentId> {
    (name.len() == 8).then(|| u32::from_str_radix(name, 16).ok().map(SegmentId))?
}

type Written = (u64, Vec<SegmentId>, Vec<(PageRef, Place)>);

fn write_file(path: &Path, id: SegmentId, present: &Present, state: SavedState) -> io::Result<Written> {
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)?;
    let mut writer = Writer::new(file)?;
    let (mut placed, mut trees) = (Vec::new(), Vec::new());
    // A page may be in several processes: by its address.
    let mut own: HashMap<*const u8, Place> = HashMap::new();
    let mut segments = BTreeSet::new();
    let present = kept_segments(&state, present);
    for tree in trees_of(&state) {
        let mut runs: Vec<Run> = Vec::new();
        let mut failed = None;
        tree.for_each(0, u64::MAX / PAGE as u64, &mut |number, page| {
            let mut find = || -> io::Result<Option<Place>> {
                if page.is(&PageRef::zero()) {
                    return Ok(None);
                }
                let kept = Place::unpacked(page.copy()).filter(|place| present.contains(&place.segment));
                let here = own.get(&page.bytes().as_ptr()).copied();
                if let Some(place) = kept.or(here) {
                    return Ok(Some(place));
                }
                let place = Place {
                    segment: id,
                    index: writer.add(page)?,
                };
                own.insert(page.bytes().as_ptr(), place);
                placed.push((page.clone(), place));
                Ok(Some(place))
            };
            match find() {
                Ok(place) => {
                    segments.extend(place.map(|place| place.segment));
                    add(&mut runs, number, place);
                }
                Err(error) => drop(failed.get_or_insert(error)),
            }
        });
        if let Some(error) = failed {
            return Err(error);
        }
        trees.push(runs);
    }
    let segments: Vec<SegmentId> = segments.into_iter().collect();
    let bytes = writer.finish(Description {
        frames: Vec::new(),
        segments: segments.clone(),
        trees,
        state,
    })?;
    Ok((bytes, segments, placed))
}

/// The page trees of all processes, then those of all shared memory.
fn trees_of(state: &SavedState) -> impl Iterator<Item = &PageTree> {
    let processes = state.image.processes.iter().map(|process| &process.pages);
    processes.chain(state.image.shared.iter().map(|shared| &shared.pages))
}

/// Of those present, the segments whose pages a state leaves where they are.
fn kept_segments(state: &SavedState, present: &HashMap<SegmentId, u64>) -> HashSet<SegmentId> {
    let mut used: HashMap<SegmentId, u64> = HashMap::new();
    for tree in trees_of(state) {
        tree.for_each(0, u64::MAX / PAGE as u64, &mut |_, page| {
            if let Some(place) =
                Place::unpacked(page.copy()).filter(|place| present.contains_key(&place.segment))
            {
                *used.entry(place.segment).or_default() += 1;
            }
        });
    }
    let mut used: Vec<_> = used.into_iter().collect();
    if used.len() >= MOST_SEGMENTS {
        used.sort_unstable_by_key(|(id, pages)| (std::cmp::Reverse(*pages), *id));
        used.truncate(MOST_SEGMENTS / 2);
    }
    used.into_iter().map(|(id, _)| id).collect()
}

/// Adds a page to the runs, joining it to the last one where it follows.
fn add(runs: &mut Vec<Run>, number: u64, place: Option<Place>) {
    if let Some(last) = runs.last_mut()
        && last.first + last.count == number
    {
        let follows = match (last.from, place) {
            (None, None) => true,
            (Some(from), Some(place)) => {
                from.segment == place.segment && u64::from(from.index) + last.count == u64::from(place.index)
            }
            _ => false,
        };
        if follows {
            last.count += 1;
            return;
        }
    }
    runs.push(Run {
        first: number,
        count: 1,
        from: place,
    });
}

/// Reads states; files and the frame read last are kept open for the next page.
struct Reader<'a> {
    segments: &'a Segments,
    store: &'a PageStore,
    open: HashMap<SegmentId, Open>,
}

struct Open {
    file: File,
    frames: Vec<(u64, u32)>,
    frame: Option<(usize, Vec<u8>)>,
}

impl Reader<'_> {
    fn description(&mut self, id: SegmentId) -> io::Result<Description> {
        let file = self.segments.open_file(id)?;
        let description = format::describe(&file)?;
        let frames = description.frames.clone();
        self.open.insert(
            id,
            Open {
                file,
                frames,
                frame: None,
            },
        );
        Ok(description)
    }

    fn tree(&mut self, runs: &[Run]) -> io::Result<PageTree> {
        let mut tree = PageTree::new();
        for run in runs {
            if run
                .first
                .checked_add(run.count)
                .is_none_or(|end| end > u64::MAX / PAGE as u64)
            {
                return Err(damaged("it has pages at impossible addresses"));
            }
            for offset in 0..run.count {
                let page = match run.from {
                    None => PageRef::zero(),
                    Some(from) => {
                        let index = u32::try_from(u64::from(from.index) + offset)
                            .map_err(|_| damaged("it names pages that cannot be"))?;
                        self.page(Place { index, ..from })?
                    }
                };
                tree.set(run.first + offset, page);
            }
        }
        Ok(tree)
    }

    fn page(&mut self, place: Place) -> io::Result<PageRef> {
        let segments = self.segments;
        let mut read = segments.read.lock().expect("not poisoned");
        if let Some(page) = read.get(&place.packed()).and_then(WeakPage::upgrade) {
            return Ok(page);
        }
        if !self.open.contains_key(&place.segment) {
            self.description(place.segment)?;
        }
        let page = self.store.put(self.bytes(place)?);
        page.note_copy(place.packed());
        read.insert(place.packed(), page.downgrade());
        Ok(page)
    }

    fn bytes(&mut self, place: Place) -> io::Result<&[u8; PAGE]> {
        let missing = || {
            damaged(format!(
                "segment {:08x} has no page {}",
                place.segment.0, place.index
            ))
        };
        let open = self.open.get_mut(&place.segment).ok_or_else(missing)?;
        let (number, within) = (
            place.index as usize / FRAME_PAGES,
            place.index as usize % FRAME_PAGES,
        );
        if open.frame.as_ref().is_none_or(|(have, _)| *have != number) {
            let frame = *open.frames.get(number).ok_or_else(missing)?;
            open.frame = Some((number, format::read_pages(&open.file, frame)?));
        }
        let pages = open.frame.as_ref().map_or(&[][..], |(_, bytes)| bytes);
        pages
            .get(within * PAGE..)
            .and_then(|bytes| bytes.first_chunk())
            .ok_or_else(missing)
    }
}

#[cfg(test)]
mod tests;
