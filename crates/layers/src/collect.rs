//! Collecting rubbish: what neither a frozen state, nor a mount, nor a view needs.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, TryLockError};

use crate::error::{Context, Error, Result};
use crate::ids::{LayerId, VolumeId};
use crate::reaper::Job;
use crate::squash;
use crate::store::{Claimed, Store};
use crate::tree::LayerName;
use crate::volume::{Frozen, Top, Volume};

/// Space is scarce when less than this part of it (one in so many bytes) is available.
const SCARCE: u64 = 10;

/// A point in the life of a store. What was made after it is never collected with it.
#[derive(Clone, Copy, Debug)]
pub struct Horizon(u64);

/// What a collection gave up. The space comes back in the background.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    pub volumes: usize,
    pub layers: usize,
    /// Writable layers of sandboxes that are no more.
    pub uppers: usize,
}

/// What a layer takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayerSize {
    pub entries: u64,
    /// On disk; of files that share blocks with others each counts in full.
    pub bytes: u64,
}

impl Store {
    /// To be asked for before listing the frozen states for [`Self::collect`].
    pub fn horizon(&self) -> Horizon {
        Horizon(self.0.ids.peek())
    }

    /// Gives up everything in the store that is older than `horizon` and that neither a state in `frozen` nor
    /// anything open needs.
    ///
    /// # Errors
    /// Failed system calls. Nothing that is needed is lost then.
    pub fn collect(&self, horizon: Horizon, frozen: &[Frozen]) -> Result<Collected> {
        let _gate = self
            .0
            .gate
            .write()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let claims: Vec<Claimed> = self
            .0
            .claims
            .lock()
            .expect("no panic while held")
            .values()
            .cloned()
            .collect();
        let mut collected = Collected::default();
        let mut needed: HashMap<VolumeId, Vec<&Frozen>> = HashMap::new();
        for state in frozen {
            needed.entry(state.volume).or_default().push(state);
        }
        for claim in &claims {
            needed.entry(claim.volume).or_default();
        }
        let dir = self.volumes_dir();
        for entry in fs::read_dir(dir).doing("listing", dir)? {
            let name = entry.doing("listing", dir)?.file_name();
            let Some(id) = name.to_str().and_then(|name| name.parse::<VolumeId>().ok()) else {
                continue;
            };
            match needed.get(&id) {
                // It is read-only, and there may be thousands.
                Some(states) if states.iter().any(|state| matches!(state.top, Top::Snapshot(_))) => {}
                Some(states) => {
                    self.collect_volume(&self.volume(id)?, horizon, states, &claims, &mut collected)?
                }
                None if id.0 < horizon.0 => {
                    self.forget_volume(id);
                    collected.volumes += 1;
                }
                None => {}
            }
        }
        self.forget_places(frozen)?;
        let usage = self.usage()?;
        if usage.available_bytes < usage.total_bytes / SCARCE {
            self.0.reaper.send(Job::Reclaim(dir.to_path_buf()));
        }
        Ok(collected)
    }

    /// Merges layers that are seen through one other layer only, so that what that one hides goes with the next
    /// collection; what is mounted keeps it until it is mounted again. With `all` whatever it costs. Returns how many
    /// layers were merged.
    ///
    /// # Errors
    /// Failed system calls, `ENOSPC` among them. Nothing is lost then.
    pub fn compact(&self, frozen: &[Frozen], all: bool) -> Result<usize> {
        let mut tops: HashMap<VolumeId, HashSet<LayerId>> = HashMap::new();
        for state in frozen {
            if let Top::Layer(id) = state.top {
                tops.entry(state.volume).or_default().insert(id);
            }
        }
        for claim in self.0.claims.lock().expect("no panic while held").values() {
            let parent = claim.package.and_then(LayerName::below);
            tops.entry(claim.volume).or_default().extend(parent);
        }
        let mut merged = 0;
        for (id, tops) in tops {
            // What has gone meanwhile needs no merging.
            if let Ok(volume) = self.volume(id)
                && !(self.features().snapshots && volume.info()?.read_only)
            {
                merged += squash::compact(self, &volume, &tops, all)?;
            }
        }
        Ok(merged)
    }

    fn collect_volume(
        &self,
        volume: &Arc<Volume>,
        horizon: Horizon,
        states: &[&Frozen],
        claims: &[Claimed],
        collected: &mut Collected,
    ) -> Result<()> {
        if self.features().snapshots && volume.info()?.read_only {
            return Ok(());
        }
        let claims: Vec<&Claimed> = claims.iter().filter(|claim| claim.volume == volume.id).collect();
        let packages: HashSet<LayerName> = claims.iter().filter_map(|claim| claim.package).collect();
        for (name, path) in listing(&volume.path.join("upper"))? {
            if name.is_none_or(|name| name.id().0 < horizon.0 && !packages.contains(&name)) {
                self.0.reaper.send(Job::RemoveTree(path));
                collected.uppers += 1;
            }
        }
        // Layers that are being merged are read, and the draft is no rubbish.
        let _guard = match volume.squashing.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(()),
        };
        let needed = needed_layers(volume, states, &claims);
        for (name, path) in listing(&volume.path.join("layers"))? {
            let Some(name) = name else {
                self.0.reaper.send(Job::RemoveTree(path));
                continue;
            };
            if name.id().0 >= horizon.0 || needed.contains(&name) {
                continue;
            }
            volume.remove(name);
            // Out of sight in one step: half a layer must never be taken for a whole one.
            let trash = path.with_file_name(format!("trash.{name}"));
            fs::rename(&path, &trash).doing("giving up", &path)?;
            self.forget_links(&path);
            self.0.reaper.send(Job::RemoveTree(trash));
            collected.layers += 1;
        }
        Ok(())
    }

    /// Whether a frozen state is still all there.
    ///
    /// # Errors
    /// Failed system calls.
    pub fn contains(&self, frozen: &Frozen) -> Result<bool> {
        let volume = match self.volume(frozen.volume) {
            Err(Error::Missing(_)) => return Ok(false),
            other => other?,
        };
        let parent = match frozen.top {
            Top::Base => None,
            Top::Layer(id) => Some(id),
            Top::Snapshot(id) => match volume.find_package(id)? {
                Some(name) => name.below(),
                None => return Ok(false),
            },
        };
        Ok(volume.chain(parent).is_some())
    }

    /// What the uppermost layer of a frozen state takes: for one frozen by a switch, what changed since the state
    /// before it. Looks at every file of it.
    ///
    /// # Errors
    /// [`Error::Missing`], failed system calls.
    pub fn measure(&self, frozen: &Frozen) -> Result<LayerSize> {
        let missing = || Error::Missing(frozen.to_string());
        let volume = self.volume(frozen.volume)?;
        let path = match frozen.top {
            Top::Base => return Ok(LayerSize::default()),
            Top::Layer(id) => {
                let chain = volume
                    .plain_chain(Some(id))
                    .or_else(|| volume.chain(Some(id)))
                    .ok_or_else(missing)?;
                volume.layer_path(*chain.first().ok_or_else(missing)?)
            }
            Top::Snapshot(id) => {
                let name = volume.find_package(id)?.ok_or_else(missing)?;
                volume.path.join("upper").join(name.to_string()).join("fs")
            }
        };
        let mut size = LayerSize::default();
        measure(&path, &mut size)?;
        Ok(size)
    }
}

/// Entries of a directory of layers, with what their names mean.
fn listing(dir: &Path) -> Result<Vec<(Option<LayerName>, std::path::PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).doing("listing", dir)? {
        let entry = entry.doing("listing", dir)?;
        found.push((
            entry.file_name().to_str().and_then(LayerName::parse),
            entry.path(),
        ));
    }
    Ok(found)
}

fn needed_layers(volume: &Volume, states: &[&Frozen], claims: &[&Claimed]) -> HashSet<LayerName> {
    let mut needed: HashSet<LayerName> = claims
        .iter()
        .flat_map(|claim| claim.layers.iter().copied())
        .collect();
    let tops = states.iter().filter_map(|state| match state.top {
        Top::Layer(id) => Some(id),
        Top::Base | Top::Snapshot(_) => None,
    });
    // What is mounted with a longer chain now will be mounted with the shorter one next.
    let parents = claims
        .iter()
        .filter_map(|claim| claim.package.and_then(LayerName::below));
    let tops: HashSet<LayerId> = tops.chain(parents).collect();
    for top in tops {
        needed.extend(volume.chain(Some(top)).unwrap_or_default());
    }
    needed
}

fn measure(dir: &Path, size: &mut LayerSize) -> Result<()> {
    for entry in fs::read_dir(dir).doing("listing", dir)? {
        let entry = entry.doing("listing", dir)?;
        let metadata = entry.metadata().doing("reading", entry.path())?;
        size.entries += 1;
        if metadata.is_dir() {
            measure(&entry.path(), size)?;
        } else {
            size.bytes += metadata.blocks() * 512;
        }
    }
    Ok(())
}
