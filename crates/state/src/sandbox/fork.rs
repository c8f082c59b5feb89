//! The source's side of a fork.

use deltabox_api::CheckpointRequest;
use deltabox_process::descriptor::ContentDirectory;

use super::Sandbox;
use super::checkpoint::Phases;
use crate::catalog::{CheckpointRecord, SandboxRecord};
use crate::error::{Error, Result};
use crate::id::SandboxId;

/// What children are made from.
pub(crate) struct ForkPoint {
    /// The sandbox as it was made.
    pub sandbox: SandboxRecord,
    pub checkpoint: CheckpointRecord,
    /// How long the source stood still.
    pub stopped_ms: f64,
}

impl Sandbox {
    /// The checkpoint `from`, or one made now of the live state. Its layers and contents are kept for `children` from
    /// here on, whatever becomes of this sandbox.
    pub(crate) fn fork_point(&mut self, from: Option<&str>, children: &[SandboxId]) -> Result<ForkPoint> {
        let (reference, stopped_ms) = match from {
            Some(reference) => (reference.to_owned(), 0.0),
            None => {
                let made = self.checkpoint(&CheckpointRequest::default())?;
                (made.id, made.stopped_ms)
            }
        };
        let checkpoint = self.loaded(&reference, &mut Phases::default())?;
        let shared = self.shared.clone();
        let _changing = shared.kept.changing();
        for child in children {
            self.share_contents(&checkpoint, child)?;
            shared.kept.add(child, [checkpoint.frozen]);
        }
        Ok(ForkPoint {
            sandbox: self.record.clone(),
            checkpoint,
            stopped_ms,
        })
    }

    fn share_contents(&self, checkpoint: &CheckpointRecord, child: &SandboxId) -> Result<()> {
        let Some(state) = &checkpoint.process_state else {
            return Ok(());
        };
        let mut contents = state.contents().peekable();
        if contents.peek().is_none() {
            return Ok(());
        }
        let failed = |error: std::io::Error| Error::io("cannot keep contents of open files", &error);
        let open = |id: &SandboxId| {
            let path = self.shared.contents.of(id);
            std::fs::create_dir_all(&path)?;
            ContentDirectory::open(&path)
        };
        let (own, other) = (
            open(&self.record.id).map_err(failed)?,
            open(child).map_err(failed)?,
        );
        contents.try_for_each(|content| own.share(content, &other).map_err(failed))
    }
}
