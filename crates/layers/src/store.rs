//! The store: where all layers are.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use deltabox_sys::extents;
use rustix::fs::{FlockOperation, flock, fstatvfs, syncfs};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use crate::error::{Context, Error, Result};
use crate::features::{Features, filesystem_of, probe};
use crate::idmap::Views;
use crate::ids::{IdSource, LayerId, VolumeId};
use crate::image;
use crate::links::LinkTable;
use crate::reaper::{Job, Reaper};
use crate::space::Places;
use crate::tree::LayerName;
use crate::volume::Volume;

/// Where a store is, and on what.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Directory of the store; created when missing.
    pub dir: PathBuf,
    pub kind: StoreKind,
    /// Size of an image, in bytes. It is sparse: only what is used takes space.
    pub image_size: u64,
    /// Directories that sandboxes will start from. They decide whether the state directory's own filesystem can
    /// hold the store, because overlayfs takes no base that contains the store.
    pub bases: Vec<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreKind {
    /// The state directory itself where it is on btrfs, else an image, else a plain directory. A store that is
    /// already there is opened as what it is.
    Auto,
    /// An image with btrfs: reflinks and snapshots.
    Btrfs,
    /// An image with XFS: reflinks.
    Xfs,
    /// An image with ext4.
    Ext4,
    /// The directory itself, on whatever filesystem it is.
    Directory,
}

/// Space of the store's filesystem, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    pub total_bytes: u64,
    pub used_bytes: u64,
    /// What can still be written.
    pub available_bytes: u64,
}

/// A handle on the open store; clones are the same store.
#[derive(Clone, Debug)]
pub struct Store(pub(crate) Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    pub root: PathBuf,
    volumes_dir: PathBuf,
    root_dir: File,
    features: Features,
    pub ids: IdSource,
    pub views: Views,
    /// Of layers and bases, by path.
    link_tables: Mutex<HashMap<PathBuf, Arc<LinkTable>>>,
    volumes: Mutex<HashMap<VolumeId, Arc<Volume>>>,
    pub places: Places,
    pub claims: Mutex<HashMap<u64, Claimed>>,
    next_claim: AtomicU64,
    /// Read-locked from looking a chain up until it is claimed, write-locked while rubbish is given up.
    pub gate: RwLock<()>,
    /// Before the mount and the lock, so that it has ended when they go.
    pub reaper: Reaper,
    mounted: Option<Mounted>,
    _lock: File,
}

#[derive(Debug)]
struct Mounted {
    target: PathBuf,
    image: File,
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = unmount(&self.target, UnmountFlags::DETACH);
    }
}

/// What a mount uses, so that collecting rubbish leaves it alone.
#[derive(Clone, Debug)]
pub(crate) struct Claimed {
    pub volume: VolumeId,
    pub layers: Vec<LayerName>,
    pub package: Option<LayerName>,
}

/// A claim lives as long as the mount may.
#[derive(Debug)]
pub(crate) struct Claim {
    store: Store,
    token: u64,
}

impl Claim {
    pub(crate) fn store(&self) -> &Store {
        &self.store
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.store
            .0
            .claims
            .lock()
            .expect("no panic while held")
            .remove(&self.token);
    }
}

impl Store {
    /// Opens the store in `options.dir`, making it if there is none. The caller is in a mount namespace of its own
    /// with private propagation, so that what is mounted here goes away with it.
    ///
    /// # Errors
    /// [`Error::StoreBusy`], [`Error::ImageDamaged`], [`Error::CannotMake`], or a failed system call.
    pub fn open(options: StoreOptions) -> Result<Self> {
        let dir = &options.dir;
        fs::create_dir_all(dir).doing("creating", dir)?;
        let lock = lock(dir)?;
        let image_path = dir.join("store.img");
        let plain = dir.join("data");
        let choice = choose(&options, &image_path, &plain)?;
        let (root, mounted) = match choice {
            Choice::Plain => (plain, None),
            Choice::Image(filesystem) => {
                if !image_path.exists() {
                    image::create(&image_path, options.image_size, filesystem)?;
                }
                let target = dir.join("mnt");
                fs::create_dir_all(&target).doing("creating", &target)?;
                image::mount(&image_path, &target)?;
                let image = File::open(&image_path).doing("opening", &image_path)?;
                (target.clone(), Some(Mounted { target, image }))
            }
        };
        let volumes_dir = root.join("volumes");
        fs::create_dir_all(&volumes_dir).doing("creating", &volumes_dir)?;
        let features = probe(&root, mounted.is_some())?;
        let inner = Inner {
            root_dir: File::open(&root).doing("opening", &root)?,
            ids: IdSource::open(&root)?,
            views: Views::open(dir.join("views"))?,
            link_tables: Mutex::default(),
            volumes: Mutex::default(),
            places: Places::default(),
            claims: Mutex::default(),
            next_claim: AtomicU64::new(0),
            gate: RwLock::new(()),
            reaper: Reaper::start().doing("starting a thread for", &root)?,
            root,
            volumes_dir,
            features,
            mounted,
            _lock: lock,
        };
        Ok(Self(Arc::new(inner)))
    }

    pub fn features(&self) -> &Features {
        &self.0.features
    }

    /// The directory all volumes are below.
    pub fn root(&self) -> &Path {
        &self.0.root
    }

    /// # Errors
    /// A failed statvfs(3).
    pub fn usage(&self) -> Result<Usage> {
        let stat = fstatvfs(&self.0.root_dir).doing("asking for the space of", &self.0.root)?;
        let block = stat.f_frsize;
        Ok(Usage {
            total_bytes: stat.f_blocks * block,
            used_bytes: stat.f_blocks.saturating_sub(stat.f_bfree) * block,
            available_bytes: stat.f_bavail * block,
        })
    }

    /// Writes dirty data of the store to its filesystem. Done before a stop, it makes a snapshot in it cheap.
    ///
    /// # Errors
    /// `EIO`, `ENOSPC`: the data could not be written.
    pub fn flush(&self) -> Result<()> {
        syncfs(&self.0.root_dir).doing("flushing", &self.0.root)
    }

    /// Makes all that was frozen before the call durable: it survives power loss after.
    ///
    /// # Errors
    /// `EIO`, `ENOSPC`: something is not durable.
    pub fn sync(&self) -> Result<()> {
        self.flush()?;
        if let Some(mounted) = &self.0.mounted {
            rustix::fs::fsync(&mounted.image).doing("flushing the image of", &self.0.root)?;
        }
        Ok(())
    }

    /// Waits until all background work that was asked for so far is done.
    pub fn settle(&self) {
        self.0.reaper.settle();
    }

    /// Waits for background work and gives what is free back to whatever the store lies on.
    ///
    /// # Errors
    /// `EIO`, `ENOSPC`.
    pub fn reclaim(&self) -> Result<()> {
        self.settle();
        if self.features().snapshots {
            self.0.reaper.send(Job::Reclaim(self.volumes_dir().to_path_buf()));
            self.settle();
            self.wait_for_deleted();
        }
        if self.0.mounted.is_some() {
            // What the device cannot take back stays allocated to the image, and is used again.
            let _ = extents::trim(self.0.root_dir.as_fd());
        }
        Ok(())
    }

    /// A deleted subvolume's space becomes free some time later; there is no end to wait for, only less to be seen.
    fn wait_for_deleted(&self) {
        let mut used = u64::MAX;
        for _ in 0..100 {
            let now = self.usage().map_or(0, |usage| usage.used_bytes);
            if now >= used {
                return;
            }
            used = now;
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    }

    pub(crate) fn volumes_dir(&self) -> &Path {
        &self.0.volumes_dir
    }

    pub(crate) fn next_layer(&self) -> Result<LayerId> {
        Ok(LayerId(self.0.ids.next()?))
    }

    pub(crate) fn next_volume(&self) -> Result<VolumeId> {
        Ok(VolumeId(self.0.ids.next()?))
    }

    pub(crate) fn create_volume(&self) -> Result<Arc<Volume>> {
        let volume = Volume::create(self.volumes_dir(), self.next_volume()?, self.0.features.snapshots)?;
        Ok(self.add_volume(volume))
    }

    pub(crate) fn snapshot(&self, of: &Volume, read_only: bool) -> Result<Arc<Volume>> {
        let volume = of.snapshot(self.volumes_dir(), self.next_volume()?, read_only)?;
        Ok(self.add_volume(volume))
    }

    fn add_volume(&self, volume: Volume) -> Arc<Volume> {
        let volume = Arc::new(volume);
        self.0
            .volumes
            .lock()
            .expect("no panic while held")
            .insert(volume.id, Arc::clone(&volume));
        volume
    }

    /// The volume `id`; [`Error::Missing`] when it is gone.
    pub(crate) fn volume(&self, id: VolumeId) -> Result<Arc<Volume>> {
        let mut volumes = self.0.volumes.lock().expect("no panic while held");
        if let Some(volume) = volumes.get(&id) {
            return Ok(Arc::clone(volume));
        }
        if !self.volumes_dir().join(id.to_string()).is_dir() {
            return Err(Error::Missing(format!("volume {id}")));
        }
        let volume = Arc::new(Volume::open(self.volumes_dir(), id)?);
        volumes.insert(id, Arc::clone(&volume));
        Ok(volume)
    }

    pub(crate) fn forget_volume(&self, id: VolumeId) {
        self.0.volumes.lock().expect("no panic while held").remove(&id);
        self.0
            .reaper
            .send(Job::RemoveVolume(self.volumes_dir().join(id.to_string())));
    }

    /// The files of a frozen tree that have several names.
    pub(crate) fn link_table(&self, path: &Path) -> Result<Arc<LinkTable>> {
        if let Some(table) = self.0.link_tables.lock().expect("no panic while held").get(path) {
            return Ok(Arc::clone(table));
        }
        let table = Arc::new(LinkTable::scan(path)?);
        self.0
            .link_tables
            .lock()
            .expect("no panic while held")
            .insert(path.to_path_buf(), Arc::clone(&table));
        Ok(table)
    }

    pub(crate) fn forget_links(&self, path: &Path) {
        self.0
            .link_tables
            .lock()
            .expect("no panic while held")
            .remove(path);
    }

    pub(crate) fn claim(&self, claimed: Claimed) -> Claim {
        let token = self.0.next_claim.fetch_add(1, Ordering::Relaxed);
        self.0
            .claims
            .lock()
            .expect("no panic while held")
            .insert(token, claimed);
        Claim {
            store: self.clone(),
            token,
        }
    }
}

fn lock(dir: &Path) -> Result<File> {
    let path = dir.join("lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .doing("opening", &path)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => Err(Error::StoreBusy(dir.to_path_buf())),
        Err(error) => Err(error).doing("locking", &path),
    }
}

enum Choice {
    Plain,
    Image(Option<&'static str>),
}

fn choose(options: &StoreOptions, image: &Path, plain: &Path) -> Result<Choice> {
    if image.exists() {
        return Ok(Choice::Image(None));
    }
    if plain.join("volumes").exists() {
        return Ok(Choice::Plain);
    }
    let make_plain = || fs::create_dir_all(plain).doing("creating", plain);
    match options.kind {
        StoreKind::Btrfs => return Ok(Choice::Image(Some("btrfs"))),
        StoreKind::Xfs => return Ok(Choice::Image(Some("xfs"))),
        StoreKind::Ext4 => return Ok(Choice::Image(Some("ext4"))),
        StoreKind::Directory => {
            make_plain()?;
            return Ok(Choice::Plain);
        }
        StoreKind::Auto => {}
    }
    let mut conflict = false;
    for base in &options.bases {
        conflict |= conflicts(base, &options.dir)?;
    }
    if !conflict && filesystem_of(&options.dir)? == "btrfs" {
        make_plain()?;
        if probe(plain, false)?.snapshots {
            return Ok(Choice::Plain);
        }
    }
    match image::create(image, options.image_size, None) {
        Ok(()) => Ok(Choice::Image(None)),
        // A base that contains the store could never be mounted over it.
        Err(error) if conflict => Err(error),
        Err(error) => {
            tracing::warn!(%error, "no store image can be made; layers go to a plain directory");
            make_plain()?;
            Ok(Choice::Plain)
        }
    }
}

/// Whether overlayfs would refuse `base` below layers in `dir`, or show two files with one inode number.
pub(crate) fn conflicts(base: &Path, dir: &Path) -> Result<bool> {
    let real = |path: &Path| fs::canonicalize(path).doing("resolving", path);
    let (base, dir) = (real(base)?, real(dir)?);
    if device(&base)? != device(&dir)? {
        return Ok(false);
    }
    // All subvolumes of a btrfs number their inodes from 257.
    Ok(dir.starts_with(&base) || base.starts_with(&dir) || filesystem_of(&dir)? == "btrfs")
}

/// The filesystem a path is on, as `major:minor` of its superblock. Unlike `st_dev` this is the same for all
/// subvolumes of a btrfs.
fn device(path: &Path) -> Result<String> {
    use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
    let id = statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID)
        .doing("reading", path)?
        .stx_mnt_id;
    let table =
        fs::read_to_string("/proc/thread-self/mountinfo").doing("reading", "/proc/thread-self/mountinfo")?;
    let line = table
        .lines()
        .find(|line| line.split(' ').next().and_then(|id| id.parse().ok()) == Some(id));
    Ok(line
        .and_then(|line| line.split(' ').nth(2))
        .unwrap_or_default()
        .to_owned())
}
