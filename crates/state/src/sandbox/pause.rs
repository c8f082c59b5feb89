//! Leaving memory, and coming back from disk.

use deltabox_api::{CheckpointRequest, CheckpointResult, RollbackResult};

use super::Sandbox;
use crate::catalog::CheckpointRecord;
use crate::error::{Error, Result};
use crate::id::CheckpointId;

impl Sandbox {
    /// Makes a checkpoint and lets nothing go on after it, until [`Sandbox::finish_pause`] or
    /// [`Sandbox::give_up_pause`].
    pub fn begin_pause(&mut self) -> Result<CheckpointResult> {
        let made = self.checkpoint(&CheckpointRequest::default())?;
        self.live()?.hold()?;
        Ok(made)
    }

    /// Ends the processes, whose state is on disk, and forgets what of it is in memory.
    pub fn finish_pause(&mut self, checkpoint: &str) -> Result<()> {
        let id = CheckpointId::from(checkpoint);
        if self.tree.current() != Some(&id) || self.tree.get(&id).is_none_or(|node| !node.durable) {
            return Err(Error::conflict(
                "the sandbox was rolled back while it was being paused",
            ));
        }
        self.end("it was paused");
        self.paused = true;
        for node in self.tree.iter_mut().filter(|node| node.saved.is_some()) {
            node.process_state = None;
        }
        Ok(())
    }

    /// Lets the processes go on after all.
    pub fn give_up_pause(&mut self) {
        if let Some(live) = &self.live
            && let Err(error) = live.let_go()
        {
            tracing::error!(sandbox = %self.record.name, %error, "the sandbox could not be thawed");
        }
    }

    /// Brings a sandbox that is not running back, from a checkpoint or the current one.
    pub fn resume(&mut self, to: Option<&str>) -> Result<RollbackResult> {
        if self.live.is_some() {
            return Err(
                Error::conflict(format!("sandbox {} is running", self.record.name))
                    .hint("`deltabox rollback` puts a running sandbox back into an earlier state"),
            );
        }
        self.rollback(to.unwrap_or("@"))
    }

    /// Whether this checkpoint is still there.
    pub(crate) fn has(&self, checkpoint: &CheckpointId) -> bool {
        self.tree.get(checkpoint).is_some()
    }

    /// The checkpoints that are on disk.
    pub(crate) fn durable(&self) -> Vec<CheckpointRecord> {
        self.tree.iter().filter(|node| node.durable).cloned().collect()
    }
}
