//! The live file state of one sandbox: the writable end of a chain of layers, frozen and rolled back.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::builder::{Builder, Mounted, Restored};
use crate::changed::{Baseline, Tick};
use crate::error::{Context, Error, Result};
use crate::hardlinks;
use crate::idmap::{IdMap, View};
use crate::ids::LayerId;
use crate::mask::Mask;
use crate::mounting;
use crate::nodes::Metadata;
use crate::package::Package;
use crate::squash::{self, Squashed};
use crate::store::{Store, conflicts};
use crate::tree::LayerName;
use crate::volume::{Frozen, Top, Volume};

/// The read-only root a sandbox starts from.
#[derive(Clone, Debug)]
pub struct Base {
    /// Directories, uppermost first.
    pub layers: Vec<PathBuf>,
    /// What of them is hidden or replaced.
    pub mask: Mask,
}

impl Base {
    /// A single directory, shown as it is.
    pub fn directory(path: impl Into<PathBuf>) -> Self {
        Self {
            layers: vec![path.into()],
            mask: Mask::default(),
        }
    }
}

/// How to freeze.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The writable layer becomes a lower one; a new mount takes the place of the old. For sandboxes of which no
    /// process is tied to an inode of the mount.
    Switch,
    /// The mount stays as it is; a read-only snapshot of the volume is the frozen state.
    Snapshot,
}

/// Named parts of an operation and how long each took.
pub type Phases = Vec<(&'static str, Duration)>;

/// What a freeze did.
#[derive(Debug)]
pub struct Freeze {
    pub frozen: Frozen,
    /// Nothing had changed: `frozen` is the state frozen or rolled back to last, and nothing new was stored.
    pub unchanged: bool,
    /// After a switch: the mount to put in the place of the old one.
    pub mount: Option<OwnedFd>,
    /// After a switch: keep until no process uses the old mount.
    pub retired: Option<Retired>,
    pub phases: Phases,
}

impl Freeze {
    /// The mount stays as it is.
    fn in_place(frozen: Frozen, unchanged: bool, clock: Clock) -> Self {
        Self {
            frozen,
            unchanged,
            mount: None,
            retired: None,
            phases: clock.phases,
        }
    }
}

/// What a rollback gives.
#[derive(Debug)]
pub struct Switched {
    /// The mount to put in the place of the old one.
    pub mount: OwnedFd,
    /// Keep until no process uses the old mount.
    pub retired: Retired,
    pub phases: Phases,
}

/// An overlay whose place another one takes. Dropping it lets the store unmount it and remove what is left of its
/// writable layer, in the background; to be done when no process has anything open on it any more.
#[derive(Debug)]
pub struct Retired {
    _mounted: Mounted,
}

/// Things made ahead of being asked for.
#[derive(Debug, Default)]
struct Ready {
    /// The overlay to switch to: its uppermost lower is the live package's `layer`, still empty.
    next: Option<Mounted>,
    /// An overlay showing the given state.
    back: Option<(Frozen, Restored)>,
}

/// See [`FileState::squash_job`].
#[derive(Debug)]
pub struct SquashJob {
    store: Store,
    volume: Arc<Volume>,
    top: Option<LayerId>,
}

impl SquashJob {
    /// Merges layers where that is worth it; one job at a time per volume.
    ///
    /// # Errors
    /// Failed system calls, `ENOSPC` among them. Nothing is lost then.
    pub fn run(&self) -> Result<Squashed> {
        squash::squash(&self.store, &self.volume, self.top)
    }

    /// Layers to go through now, from the uppermost to the base.
    pub fn depth(&self) -> usize {
        self.volume.chain(self.top).map_or(0, |chain| chain.len())
    }

    /// Whether the two would merge layers of the same volume, so that only the later one is worth running.
    pub fn is_of_same_volume(&self, other: &SquashJob) -> bool {
        self.volume.id == other.volume.id
    }
}

/// The live file state of one sandbox.
#[derive(Debug)]
pub struct FileState {
    pub(crate) store: Store,
    pub(crate) base: Base,
    view: Arc<View>,
    base_views: Vec<Arc<View>>,
    first_id: u32,
    pub(crate) live: Mounted,
    baseline: Baseline,
    /// The state that the live one started from.
    last: Frozen,
    ready: Ready,
    ahead: Ahead,
}

/// A snapshot made ahead of a stop.
#[derive(Debug, Default)]
struct Ahead {
    /// What it holds, and what tells whether that is still so.
    state: Option<(Frozen, Baseline)>,
    /// Freezes since one was made in vain; 0 if the last was not.
    misses: u32,
}

/// Freezes after which a snapshot is made ahead once more, where the last one was in vain.
const RETRY: u32 = 8;

impl FileState {
    /// A fresh file state on `base`.
    ///
    /// # Errors
    /// [`Error::BaseOnStore`], [`Error::NotMappable`], [`Error::Mount`], or a failed system call.
    pub fn create(store: &Store, base: Base, ids: &IdMap<'_>) -> Result<Self> {
        let volume = store.create_volume()?;
        let top = match base.mask.is_empty() {
            true => Top::Base,
            false => {
                let name = LayerName::Mask {
                    id: store.next_layer()?,
                };
                base.mask.build(&volume.layer_path(name), &base.layers)?;
                volume.insert(name);
                Top::Layer(name.id())
            }
        };
        Self::from_frozen(
            store,
            base,
            &Frozen {
                volume: volume.id,
                top,
            },
            ids,
        )
    }

    /// A file state that starts as a copy of `frozen`: a fork, or a sandbox that comes back after a restart. `base`
    /// must be the one `frozen` was made on (its mask is in the store already).
    ///
    /// # Errors
    /// As [`Self::create`], and [`Error::Missing`].
    pub fn from_frozen(store: &Store, base: Base, frozen: &Frozen, ids: &IdMap<'_>) -> Result<Self> {
        for layer in &base.layers {
            if conflicts(layer, store.root())? {
                return Err(Error::BaseOnStore(layer.clone()));
            }
        }
        let view = store.0.views.get(store.root(), ids)?;
        let base_views = base
            .layers
            .iter()
            .map(|layer| store.0.views.get(layer, ids))
            .collect::<Result<Vec<_>>>()?;
        let builder = Builder {
            store,
            base: &base,
            view: &view,
            base_views: &base_views,
        };
        let Restored {
            mounted: live,
            next,
            baseline,
        } = builder.restore(frozen, false)?;
        Ok(Self {
            store: store.clone(),
            base,
            view,
            base_views,
            first_id: if ids.userns.is_some() { ids.first } else { 0 },
            live,
            baseline,
            last: *frozen,
            ready: Ready { next, back: None },
            ahead: Ahead::default(),
        })
    }

    pub(crate) fn first_id(&self) -> u32 {
        self.first_id
    }

    /// The mount of the live state, to be attached as the sandbox's root. All descriptors returned are the same
    /// mount.
    ///
    /// # Errors
    /// Too many open files.
    pub fn mount(&self) -> Result<OwnedFd> {
        mounting::duplicate(&self.live.mount)
    }

    /// The state that the live one started from: the last one frozen or rolled back to.
    pub fn last(&self) -> Frozen {
        self.last
    }

    /// Whether the files have changed since the last freeze or rollback. May say yes where nothing did (a change was
    /// undone; right after a rollback to a snapshot for which nothing was prepared), never no where something did.
    ///
    /// # Errors
    /// A failed system call on the store.
    pub fn is_changed(&mut self) -> Result<bool> {
        self.baseline.is_changed(&self.store, &self.live.package)
    }

    /// Does what makes the next freeze by snapshot cheap, while the sandbox runs: makes a snapshot, which is the frozen
    /// state if nothing changes until the stop. Where things did change the last time, writes back what is dirty.
    ///
    /// # Errors
    /// `EIO`, `ENOSPC` and other failed system calls.
    pub fn freeze_ahead(&mut self) -> Result<()> {
        self.forget_ahead();
        if !self.store.features().snapshots || !self.is_changed()? {
            return Ok(());
        }
        if self.ahead.misses > 0 || !hardlinks::is_complete(&self.live)? {
            self.ahead.misses = (self.ahead.misses + 1) % RETRY;
            return self.store.flush();
        }
        let (frozen, committed) = self.take_snapshot()?;
        let baseline = Baseline::of_running(&self.live.package, committed)?;
        self.ahead.state = Some((frozen, baseline));
        Ok(())
    }

    /// A read-only snapshot of the volume, and the transaction it was committed in.
    fn take_snapshot(&self) -> Result<(Frozen, u64)> {
        let package = &self.live.package;
        let volume = self.store.snapshot(&package.volume, true)?;
        let frozen = Frozen {
            volume: volume.id,
            top: Top::Snapshot(package.id),
        };
        Ok((frozen, volume.info()?.created_in))
    }

    fn forget_ahead(&mut self) {
        if let Some((frozen, _)) = self.ahead.state.take() {
            self.store.forget_volume(frozen.volume);
        }
    }

    /// To be called when what was frozen last is not going to be kept: the next freeze stores it again.
    pub fn forget_frozen(&mut self) {
        self.forget_ahead();
        self.baseline = Baseline::Unknown;
    }

    /// Freezes the files as they are now. The sandbox must stand still from before this call until, after a switch,
    /// the new mount is in place. On failure nothing has changed.
    ///
    /// # Errors
    /// [`Error::NoSnapshots`], [`Error::Mount`], `ENOSPC` and other failed system calls.
    pub fn freeze(&mut self, way: Way) -> Result<Freeze> {
        if way == Way::Snapshot && !self.store.features().snapshots {
            return Err(Error::NoSnapshots(self.store.features().filesystem.clone()));
        }
        let since = Tick::now();
        let mut clock = Clock::start();
        if way == Way::Snapshot
            && let Some(frozen) = self.take_ahead()?
        {
            clock.lap("look");
            return Ok(Freeze::in_place(frozen, false, clock));
        }
        if !self.is_changed()? {
            clock.lap("look");
            return Ok(Freeze::in_place(self.last, true, clock));
        }
        clock.lap("look");
        hardlinks::complete(&self.live, &self.store, &self.base)?;
        clock.lap("links");
        match way {
            Way::Switch => self.switch(clock),
            Way::Snapshot => self.snapshot(since, clock),
        }
    }

    /// The state that was frozen ahead, if it is still what there is.
    fn take_ahead(&mut self) -> Result<Option<Frozen>> {
        let Some((frozen, mut baseline)) = self.ahead.state.take() else {
            return Ok(None);
        };
        if baseline.is_changed(&self.store, &self.live.package)? {
            self.store.forget_volume(frozen.volume);
            self.ahead.misses = 1;
            return Ok(None);
        }
        (self.baseline, self.last) = (baseline, frozen);
        Ok(Some(frozen))
    }

    fn switch(&mut self, mut clock: Clock) -> Result<Freeze> {
        self.forget_ahead();
        let package = self.live.package.clone();
        let root = Metadata::read(&package.fs())?;
        let next = match self.ready.next.take() {
            // The overlay's own idea of its root's owner and mode dates from when it was mounted.
            Some(next) if same_except_times(&next.root, &root) => next,
            _ => self.builder().next(&package, &root)?,
        };
        clock.lap("prepare");
        root.apply(&package.layer())?;
        package.move_entries()?;
        clock.lap("move");
        if let Err(error) = self.finish_switch(&package, &next, &root) {
            package.move_back();
            return Err(error);
        }
        package.volume.insert(package.name());
        let frozen = Frozen {
            volume: package.volume.id,
            top: Top::Layer(package.id),
        };
        let mount = mounting::duplicate(&next.mount)?;
        let old = std::mem::replace(&mut self.live, next);
        self.baseline = Baseline::Empty(root);
        self.last = frozen;
        clock.lap("publish");
        Ok(Freeze {
            frozen,
            unchanged: false,
            mount: Some(mount),
            retired: Some(Retired { _mounted: old }),
            phases: clock.phases,
        })
    }

    fn finish_switch(&self, package: &Package, next: &Mounted, root: &Metadata) -> Result<()> {
        root.apply_times(&package.layer())?;
        root.apply_times(&next.package.fs())?;
        hardlinks::forget(&package.work())?;
        let frozen = package.volume.layer_path(package.name());
        std::fs::rename(package.layer(), &frozen).doing("publishing the layer", &frozen)
    }

    fn snapshot(&mut self, since: Tick, mut clock: Clock) -> Result<Freeze> {
        let (frozen, committed) = self.take_snapshot()?;
        clock.lap("snapshot");
        self.baseline = Baseline::of_subvolume(&self.live.package, committed, since)?;
        self.last = frozen;
        clock.lap("publish");
        Ok(Freeze::in_place(frozen, false, clock))
    }

    /// Makes `frozen` the live state. Nothing has changed when this fails.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Mount`], `ENOSPC` and other failed system calls.
    pub fn rollback(&mut self, frozen: &Frozen) -> Result<Switched> {
        let mut clock = Clock::start();
        self.forget_ahead();
        let restored = match self.ready.back.take() {
            Some((state, restored)) if state == *frozen => restored,
            other => {
                self.ready.back = other;
                self.builder().restore(frozen, false)?
            }
        };
        let mount = mounting::duplicate(&restored.mounted.mount)?;
        // What was ready to be switched to freezes a package that is not the live one any more.
        self.ready.next = restored.next;
        let old = std::mem::replace(&mut self.live, restored.mounted);
        self.baseline = restored.baseline;
        self.last = *frozen;
        clock.lap("mount");
        Ok(Switched {
            mount,
            retired: Retired { _mounted: old },
            phases: clock.phases,
        })
    }

    /// Makes ahead what the next freeze or rollback will need: some 0.5 ms, plus a snapshot where the last state is
    /// one. Best called when the sandbox has nothing else to do. Does nothing where all is ready.
    ///
    /// # Errors
    /// Failed system calls; nothing is lost then but time.
    pub fn prepare(&mut self) -> Result<()> {
        hardlinks::prepare(&self.live, &self.store, &self.base)?;
        if self.ready.next.is_none() && self.may_touch_volume()? {
            let package = self.live.package.clone();
            let root = Metadata::read(&package.fs())?;
            self.ready.next = Some(self.builder().next(&package, &root)?);
        }
        if !matches!(&self.ready.back, Some((state, _)) if *state == self.last) {
            self.ready.back = Some((self.last, self.builder().restore(&self.last, true)?));
        }
        Ok(())
    }

    /// Directories made in the volume change it, and it could not be told any more whether the sandbox did too.
    fn may_touch_volume(&mut self) -> Result<bool> {
        if let Baseline::Subvolume { .. } = self.baseline {
            if !self.is_changed()? {
                return Ok(false);
            }
            self.baseline = Baseline::Unknown;
        }
        Ok(true)
    }

    /// The merging that keeps the live state's chain short, to be run on another thread. The next mount uses what it
    /// makes.
    pub fn squash_job(&self) -> SquashJob {
        let Package { volume, parent, .. } = &self.live.package;
        SquashJob {
            store: self.store.clone(),
            volume: Arc::clone(volume),
            top: *parent,
        }
    }

    fn builder(&self) -> Builder<'_> {
        Builder {
            store: &self.store,
            base: &self.base,
            view: &self.view,
            base_views: &self.base_views,
        }
    }
}

fn same_except_times(a: &Metadata, b: &Metadata) -> bool {
    (a.uid, a.gid, a.mode, &a.xattrs) == (b.uid, b.gid, b.mode, &b.xattrs)
}

/// Measures the phases of an operation.
struct Clock {
    last: Instant,
    phases: Phases,
}

impl Clock {
    fn start() -> Self {
        Self {
            last: Instant::now(),
            phases: Phases::new(),
        }
    }

    fn lap(&mut self, name: &'static str) {
        let now = Instant::now();
        self.phases.push((name, now - self.last));
        self.last = now;
    }
}
