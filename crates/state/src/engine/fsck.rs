//! Checking what is on disk.

use std::collections::HashMap;

use deltabox_api::{Damage, FsckResult};

use super::Engine;
use crate::error::Result;
use crate::segments::SegmentId;

impl Engine {
    /// Reads everything that durable checkpoints consist of and names those that are not whole.
    pub fn fsck(&self) -> Result<FsckResult> {
        let mut result = FsckResult::default();
        let mut checked: HashMap<SegmentId, Option<String>> = HashMap::new();
        for (sandbox, handle) in self.ready() {
            // One that is removed meanwhile is left out.
            let Ok(nodes) = handle.call(|sandbox| Ok(sandbox.durable())) else {
                continue;
            };
            for node in nodes {
                result.checkpoints += 1;
                let mut problems = Vec::new();
                match self.shared.store.contains(&node.frozen) {
                    Ok(true) => {}
                    Ok(false) => problems.push("layers of its files are missing".to_owned()),
                    Err(error) => problems.push(error.to_string()),
                }
                for id in node.saved.iter().flat_map(|saved| saved.all()) {
                    let problem = checked.entry(id).or_insert_with(|| {
                        self.shared
                            .segments
                            .check(id)
                            .err()
                            .map(|error| error.to_string())
                    });
                    problems.extend(problem.clone());
                }
                // One that was removed meanwhile is not damaged.
                let id = node.id.clone();
                if !problems.is_empty() && handle.call(move |sandbox| Ok(sandbox.has(&id))).unwrap_or(false) {
                    result.damaged.push(Damage {
                        sandbox: sandbox.clone(),
                        checkpoint: node.id.to_string(),
                        problem: problems.join("; "),
                    });
                }
            }
        }
        Ok(result)
    }
}
