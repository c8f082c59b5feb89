//! Building overlays: a package, its lower layers, and the mount.

use std::fs;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::lremovexattr;

use crate::changed::{Baseline, Tick};
use crate::error::{Context, Error, Result};
use crate::hardlinks;
use crate::idmap::View;
use crate::ids::LayerId;
use crate::live::Base;
use crate::mounting::{self, CHAIN_MAX, Parts};
use crate::nodes::{Metadata, OVERLAY, xattr_names};
use crate::package::Package;
use crate::reaper::Job;
use crate::squash;
use crate::store::{Claim, Claimed, Store};
use crate::tree::LayerName;
use crate::volume::{Frozen, Top, Volume};

/// A mounted overlay and what it writes to. When dropped, the mount goes (if it is attached nowhere) and with it
/// what its package still holds, in the background.
#[derive(Debug)]
pub(crate) struct Mounted {
    pub package: Package,
    /// The descriptor keeps the mount alive after it was attached and detached elsewhere.
    pub mount: Arc<OwnedFd>,
    /// What its root directory was given.
    pub root: Metadata,
    /// The lower layers it was mounted with, uppermost first, without the base.
    pub chain: Vec<LayerName>,
    claim: Claim,
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let reaper = &self.claim.store().0.reaper;
        reaper.send(Job::Close(Arc::clone(&self.mount)));
        reaper.send(Job::RemoveTree(self.package.dir()));
    }
}

/// An overlay that shows a frozen state.
#[derive(Debug)]
pub(crate) struct Restored {
    pub mounted: Mounted,
    pub next: Option<Mounted>,
    pub baseline: Baseline,
}

/// What all overlays of one sandbox have in common.
pub(crate) struct Builder<'a> {
    pub store: &'a Store,
    pub base: &'a Base,
    pub view: &'a Arc<View>,
    pub base_views: &'a [Arc<View>],
}

impl Builder<'_> {
    /// The overlay to switch to when `package` is frozen: above its `layer`, which is empty until then. Nothing is
    /// looked up in the overlay before, so it holds no stale knowledge of that directory.
    pub(crate) fn next(&self, package: &Package, root: &Metadata) -> Result<Mounted> {
        let volume = &package.volume;
        let id = self.store.next_layer()?;
        let name = LayerName::Plain {
            id,
            parent: Some(package.id),
        };
        let (mut chain, claim) = self.claim(volume, package.parent, name, Some(package.name()))?;
        let mut lowers = vec![package.relative("layer")];
        lowers.extend(chain.iter().map(|name| volume.layer_relative(*name)));
        chain.insert(0, package.name());
        let next = Package::create(volume, id, Some(package.id))?;
        root.apply(&next.fs())?;
        self.mount(next, chain, claim, &lowers, root.clone())
    }

    /// An overlay that shows `frozen`. With `ahead` also the one to switch to from there is made, if that would be
    /// hard to do later.
    pub(crate) fn restore(&self, frozen: &Frozen, ahead: bool) -> Result<Restored> {
        let missing = |_| Error::Missing(frozen.to_string());
        let volume = self.store.volume(frozen.volume).map_err(missing)?;
        match frozen.top {
            Top::Base => self.fresh(&volume, None),
            Top::Layer(id) => self.fresh(&volume, Some(id)),
            Top::Snapshot(id) => self.go_on_from(&volume, id, ahead),
        }
    }

    fn fresh(&self, volume: &Arc<Volume>, parent: Option<LayerId>) -> Result<Restored> {
        let id = self.store.next_layer()?;
        let (chain, claim) = self.claim(volume, parent, LayerName::Plain { id, parent }, None)?;
        let below = chain.first().map(|name| volume.layer_path(*name));
        let below = below.or_else(|| self.base.layers.first().cloned());
        let no_base = || Error::BadPath {
            path: PathBuf::new(),
            why: "the base has no directory",
        };
        let root = Metadata::read(&below.ok_or_else(no_base)?)?;
        let package = Package::create(volume, id, parent)?;
        root.apply(&package.fs())?;
        let lowers: Vec<_> = chain.iter().map(|name| volume.layer_relative(*name)).collect();
        let mounted = self.mount(package, chain, claim, &lowers, root.clone())?;
        Ok(Restored {
            mounted,
            next: None,
            baseline: Baseline::Empty(root),
        })
    }

    /// A snapshot is gone on with in a writable snapshot of it: its writable layer is the new one's.
    fn go_on_from(&self, source: &Arc<Volume>, top: LayerId, ahead: bool) -> Result<Restored> {
        let since = Tick::now();
        let volume = self.store.snapshot(source, false)?;
        let result = self.go_on(&volume, top, ahead, since);
        if result.is_err() {
            self.store.forget_volume(volume.id);
        }
        result
    }

    fn go_on(&self, volume: &Arc<Volume>, top: LayerId, ahead: bool, since: Tick) -> Result<Restored> {
        let found = volume.find_package(top)?;
        let Some(LayerName::Plain { parent, .. }) = found else {
            return Err(Error::Missing(format!("layer {top} of volume {}", volume.id)));
        };
        let old = Package {
            volume: Arc::clone(volume),
            id: top,
            parent,
        };
        // Another number, because the layer that this one becomes is not the one that the original becomes.
        let package = Package {
            id: self.store.next_layer()?,
            ..old.clone()
        };
        fs::rename(old.dir(), package.dir()).doing("taking over", old.dir())?;
        remove_others(volume, &package)?;
        renew_work(&package)?;
        let root = Metadata::read(&package.fs())?;
        let (chain, claim) = self.claim(volume, parent, package.name(), None)?;
        let lowers: Vec<_> = chain.iter().map(|name| volume.layer_relative(*name)).collect();
        let mounted = self.mount(package.clone(), chain, claim, &lowers, root.clone())?;
        if !ahead {
            return Ok(Restored {
                mounted,
                next: None,
                baseline: Baseline::Unknown,
            });
        }
        let next = Some(self.next(&package, &root)?);
        // What was done to the volume here is committed, so that later changes are in later transactions.
        self.store.flush()?;
        let committed = volume.info()?.generation;
        let baseline = Baseline::of_subvolume(&package, committed, since)?;
        Ok(Restored {
            mounted,
            next,
            baseline,
        })
    }

    /// The chain below the package `name`, and the claim on it. `above` is claimed too: the layer that is about to
    /// come between them.
    fn claim(
        &self,
        volume: &Arc<Volume>,
        parent: Option<LayerId>,
        name: LayerName,
        above: Option<LayerName>,
    ) -> Result<(Vec<LayerName>, Claim)> {
        let missing = || Error::Missing(format!("a layer of volume {}", volume.id));
        let _gate = self
            .store
            .0
            .gate
            .read()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut chain = volume.chain(parent).ok_or_else(missing)?;
        if chain.len() + self.base.layers.len() >= CHAIN_MAX {
            // The background merging was not run, or could not keep up.
            squash::squash(self.store, volume, parent)?;
            chain = volume.chain(parent).ok_or_else(missing)?;
        }
        let layers = above.iter().chain(&chain).copied().collect();
        let claim = self.store.claim(Claimed {
            volume: volume.id,
            layers,
            package: Some(name),
        });
        Ok((chain, claim))
    }

    fn mount(
        &self,
        package: Package,
        chain: Vec<LayerName>,
        claim: Claim,
        lowers: &[String],
        root: Metadata,
    ) -> Result<Mounted> {
        let base: Vec<BorrowedFd<'_>> = self.base_views.iter().map(|view| view.root()).collect();
        let mount = mounting::mount(&Parts {
            store: self.view.root(),
            upper: &package.relative("fs"),
            work: &package.relative("work"),
            lowers,
            base: &base,
            owner: self.view.owner(),
        });
        match mount {
            Ok(mount) => Ok(Mounted {
                package,
                mount: Arc::new(mount),
                root,
                chain,
                claim,
            }),
            Err(error) => {
                self.store.0.reaper.send(Job::RemoveTree(package.dir()));
                Err(error)
            }
        }
    }
}

/// A snapshot also holds what other sandboxes were writing in the volume then.
fn remove_others(volume: &Volume, keep: &Package) -> Result<()> {
    let dir = volume.path.join("upper");
    for entry in fs::read_dir(&dir).doing("listing", &dir)? {
        let path = entry.doing("listing", &dir)?.path();
        if path != keep.dir() {
            fs::remove_dir_all(&path).doing("removing", &path)?;
        }
    }
    Ok(())
}

/// Makes the writable layer of a snapshot one that can be mounted: overlayfs recorded in it which inodes (of the
/// original volume) it belongs to, and would refuse it (`ESTALE`).
fn renew_work(package: &Package) -> Result<()> {
    let work = package.work();
    hardlinks::forget(&work)?;
    fs::remove_dir_all(&work).doing("removing", &work)?;
    fs::create_dir(&work).doing("creating", &work)?;
    let root: &Path = &package.fs();
    for name in xattr_names(root).doing("reading the attributes of", root)? {
        if name.as_bytes().starts_with(OVERLAY.as_bytes()) {
            lremovexattr(root, &name).doing("removing an attribute of", root)?;
        }
    }
    Ok(())
}
