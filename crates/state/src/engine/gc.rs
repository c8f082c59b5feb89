//! What the history takes, and keeping it within its limits at once.

use deltabox_api::{DiskBytes, GcResult, Log, RemovedCheckpoint, Stats};

use super::{Engine, Slot};
use crate::background::Work;
use crate::error::{Error, Result};
use crate::ledger::{Needs, Sum};
use crate::retention::excess;
use crate::sandbox::{Handle, now_unix_ms};

impl Engine {
    /// A sandbox's checkpoints and, if that is asked for, what they take.
    pub fn log(&self, name: &str, disk: bool) -> Result<Log> {
        let handle = self.get(name)?;
        if !disk {
            return handle.call(|sandbox| Ok(sandbox.log()));
        }
        let (mut log, needs) = handle.call(|sandbox| Ok((sandbox.log(), sandbox.needs())))?;
        let ledger = self.shared.disk().ledger(handle.id(), &needs)?;
        for (number, checkpoint) in log.checkpoints.iter_mut().enumerate() {
            checkpoint.disk = Some(ledger.of(number).into());
        }
        log.disk = Some(ledger.sum().into());
        Ok(log)
    }

    /// What a sandbox uses, with what its checkpoints take if that is asked for.
    pub fn stats(&self, name: &str, disk: bool) -> Result<Stats> {
        let handle = self.get(name)?;
        let mut stats = handle.call(|sandbox| sandbox.stats())?;
        if disk {
            let needs: Vec<Needs> = handle.call(|sandbox| Ok(sandbox.needs()))?;
            let ledger = self.shared.disk().ledger(handle.id(), &needs)?;
            stats.disk = Some(ledger.sum().into());
        }
        Ok(stats)
    }

    /// Removes what the limits of one sandbox, or of each, do not keep, and hands space back that nobody needs.
    pub fn gc(&self, name: Option<&str>) -> Result<GcResult> {
        let handles: Vec<(String, Handle)> = match name {
            Some(name) => vec![(name.to_owned(), self.get(name)?)],
            None => self.ready(),
        };
        let mut result = GcResult::default();
        for (name, handle) in handles {
            match self.collect_history(&name, &handle, &mut result) {
                // It is removed at this moment, with all its checkpoints.
                Err(error) if error.is_gone() => {}
                other => other?,
            }
        }
        let (done, receive) = std::sync::mpsc::channel();
        self.shared.background.send(Work::Reclaim(done));
        receive
            .recv()
            .map_err(|_| Error::conflict("the daemon is stopping"))??;
        Ok(result)
    }

    fn collect_history(&self, name: &str, handle: &Handle, result: &mut GcResult) -> Result<()> {
        let (limits, candidates) =
            handle.call(|sandbox| Ok((sandbox.record.retention, sandbox.candidates())))?;
        let needs: Vec<Needs> = candidates
            .iter()
            .map(|candidate| candidate.needs.clone())
            .collect();
        let mut ledger = self.shared.disk().ledger(handle.id(), &needs)?;
        let before = ledger.sum().total();
        let gone = excess(&limits, now_unix_ms(), &candidates, Some(&mut ledger));
        if gone.is_empty() {
            return Ok(());
        }
        let (done, receive) = std::sync::mpsc::channel();
        let removed = handle.call(move |sandbox| {
            Ok(sandbox.retire(&gone, Some(Box::new(move |told| drop(done.send(told))))))
        })?;
        receive
            .recv()
            .map_err(|_| Error::conflict("the sandbox was removed meanwhile"))??;
        result.freed_bytes += before - ledger.sum().total();
        result
            .removed
            .extend(removed.into_iter().map(|id| RemovedCheckpoint {
                sandbox: name.to_owned(),
                checkpoint: id.to_string(),
            }));
        Ok(())
    }

    /// All sandboxes that are not being made or removed.
    pub(super) fn ready(&self) -> Vec<(String, Handle)> {
        let sandboxes = self.sandboxes.lock().expect("not poisoned");
        let ready = sandboxes.iter().filter_map(|(name, slot)| match slot {
            Slot::Ready(handle) => Some((name.clone(), handle.clone())),
            Slot::Busy => None,
        });
        ready.collect()
    }
}

impl From<Sum> for DiskBytes {
    fn from(sum: Sum) -> Self {
        Self {
            private_bytes: sum.private,
            shared_bytes: sum.shared,
        }
    }
}
