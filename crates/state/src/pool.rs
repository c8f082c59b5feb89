//! Cells ready for use: the spawner, the pool of empty cells, and the ranges of user ids they get.

use std::collections::BTreeSet;
use std::ops::Deref;
use std::process::Command;
use std::sync::{Arc, Mutex, RwLock};

use deltabox_api::Limits;
use deltabox_isolation::cgroup::Place;
use deltabox_isolation::{Cell, CellPool, CellSpec, CgroupDriver, Spawner};

use crate::config::EngineConfig;
use crate::error::{Error, Result};

/// First user id given to a cell: far above those of the host's own users and of common subordinate ranges.
const FIRST_UID: u32 = 1 << 28;
/// Cells at the most at a time: the ranges of 65,536 ids that fit between [`FIRST_UID`] and the end of 31 bits.
const SLOTS: u32 = (1 << 15) - (1 << 12);

/// Makes cells; shared by all sandboxes.
pub(crate) struct Pool {
    driver: Arc<CgroupDriver>,
    /// Absent once closed.
    cells: RwLock<Option<CellPool>>,
    slots: Arc<Slots>,
}

/// Which ranges of user ids are in use.
#[derive(Default)]
struct Slots {
    state: Mutex<SlotState>,
}

#[derive(Default)]
struct SlotState {
    taken: BTreeSet<u32>,
    next: u32,
    made: u64,
}

impl Slots {
    /// A free range and a number that no cell had before. Ranges are reused late, so that a process that somehow
    /// outlived its cell does not meet its successor.
    fn take(&self) -> deltabox_isolation::Result<CellSpec> {
        let mut state = self.state.lock().expect("not poisoned");
        if state.taken.len() as u32 >= SLOTS {
            return Err(deltabox_isolation::Error::Invalid(format!(
                "all {SLOTS} ranges of user ids are in use; remove sandboxes"
            )));
        }
        while state.taken.contains(&state.next) {
            state.next = (state.next + 1) % SLOTS;
        }
        let slot = state.next;
        state.taken.insert(slot);
        state.next = (slot + 1) % SLOTS;
        state.made += 1;
        let id = format!("c{}", state.made);
        Ok(CellSpec {
            id,
            uid_base: FIRST_UID + (slot << 16),
            limits: Default::default(),
        })
    }

    fn give_back(&self, uid_base: u32) {
        self.state
            .lock()
            .expect("not poisoned")
            .taken
            .remove(&((uid_base - FIRST_UID) >> 16));
    }
}

/// A cell that ends when dropped, and then returns its range of user ids.
pub(crate) struct OwnedCell {
    cell: Option<Cell>,
    slots: Arc<Slots>,
}

impl Deref for OwnedCell {
    type Target = Cell;

    fn deref(&self) -> &Cell {
        self.cell.as_ref().expect("present until dropped")
    }
}

impl Drop for OwnedCell {
    fn drop(&mut self) {
        if let Some(cell) = self.cell.take() {
            let uid_base = cell.uid_base();
            match cell.destroy() {
                Ok(()) => self.slots.give_back(uid_base),
                // Its range stays taken: something of it may still run.
                Err(error) => tracing::error!(%error, "a cell did not end"),
            }
        }
    }
}

impl Pool {
    /// Clears away what an earlier daemon of this state directory left, and starts the spawner.
    pub fn start(config: &EngineConfig) -> Result<Self> {
        let driver = Arc::new(CgroupDriver::detect(&state_name(config))?);
        driver.sweep()?;
        let mut command = Command::new(&config.spawner_program);
        command.args(&config.spawner_args);
        let spawner = Arc::new(Spawner::start(command, driver.clone())?);
        let slots = Arc::new(Slots::default());
        let source = slots.clone();
        let cells = CellPool::new(spawner, config.pool_size, Box::new(move || source.take()))?;
        let cells = RwLock::new(Some(cells));
        Ok(Self { driver, cells, slots })
    }

    /// A cell with these limits.
    pub fn take(&self, limits: &Limits) -> Result<OwnedCell> {
        let limits = deltabox_isolation::Limits {
            memory_bytes: limits.memory_bytes,
            pids: limits.pids.map(u64::from),
            cpus: limits.cpus,
        };
        self.driver.features().check(&limits)?;
        let cell = OwnedCell {
            cell: Some(self.take_empty()?),
            slots: self.slots.clone(),
        };
        cell.set_limits(&limits)?;
        Ok(cell)
    }

    fn take_empty(&self) -> Result<Cell> {
        let cells = self.cells.read().expect("not poisoned");
        let stopping = || Error::conflict("the daemon is stopping");
        Ok(cells.as_ref().ok_or_else(stopping)?.take()?)
    }

    /// Ends the empty cells and removes the cgroups; all other cells have ended before.
    pub fn close(&self) {
        drop(self.cells.write().expect("not poisoned").take());
        if let Err(error) = self.driver.sweep().and_then(|()| self.driver.remove()) {
            // The next daemon of this state directory uses what is left.
            tracing::warn!(%error, "cgroups could not be removed");
        }
    }

    /// Limits this machine cannot hold, in words.
    pub fn lost(&self) -> Vec<String> {
        let features = self.driver.features();
        let places = [
            ("memory", &features.memory),
            ("processes", &features.pids),
            ("processor time", &features.cpu),
        ];
        let missing = places.into_iter().filter_map(|(what, place)| match place {
            Place::Nowhere(why) => Some(format!("no limit on {what}: {why}")),
            _ => None,
        });
        missing.collect()
    }
}

/// A name for cgroups that differs between state directories.
fn state_name(config: &EngineConfig) -> String {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    config.home.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_do_not_overlap_and_are_reused_late() {
        let slots = Slots::default();
        let first = slots.take().unwrap();
        let second = slots.take().unwrap();
        assert_eq!(second.uid_base - first.uid_base, 65536);
        slots.give_back(first.uid_base);
        let third = slots.take().unwrap();
        assert_ne!(third.uid_base, first.uid_base);
        assert_ne!(third.id, first.id);
    }

    #[test]
    fn the_last_range_ends_before_31_bits() {
        assert!(u64::from(FIRST_UID) + (u64::from(SLOTS) << 16) <= 1 << 31);
    }
}
