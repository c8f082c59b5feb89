//! Bounding the history: removing checkpoints of it, and keeping them from being removed.

use std::collections::HashSet;

use deltabox_api::Retention;

use super::{DurableReply, Sandbox};
use crate::background::{Limit, Work};
use crate::catalog::{Change, CheckpointRecord, Edit};
use crate::error::{Error, Result};
use crate::id::CheckpointId;
use crate::ledger::Needs;
use crate::retention::Candidate;

impl Sandbox {
    /// Removes a checkpoint; its children become its parent's. `done` is told when it will not come back even if the
    /// daemon is killed.
    pub fn remove_checkpoint(&mut self, reference: &str, done: DurableReply) -> Result<()> {
        let node = self.tree.resolve(reference)?;
        let (id, pinned) = (node.id.clone(), node.pinned);
        if self.tree.current() == Some(&id) {
            return Err(Error::conflict(format!(
                "checkpoint {id} is the current one: the sandbox's state goes on from it"
            ))
            .hint("make another checkpoint or roll back to another one first"));
        }
        if pinned {
            let name = &self.record.name;
            return Err(Error::conflict(format!("checkpoint {id} is pinned"))
                .hint(format!("`deltabox unpin {name} {id}` allows removing it")));
        }
        self.forget(&[id], Some(done));
        Ok(())
    }

    /// Keeps a checkpoint from being removed, or allows it again. `done` is told when that survives a crash.
    pub fn pin(&mut self, reference: &str, pinned: bool, done: DurableReply) -> Result<()> {
        let id = self.tree.resolve(reference)?.id.clone();
        if let Some(node) = self.tree.get_mut(&id) {
            node.pinned = pinned;
            let change = Change::of(node, Edit::Pin(pinned));
            self.queue_changes(vec![change], Some(done));
        }
        Ok(())
    }

    /// Sets how much history is kept, from the next checkpoint on. `done` is told when that survives a crash.
    pub fn set_retention(&mut self, retention: Retention, done: DurableReply) {
        self.record.retention = retention;
        self.queue_changes(Vec::new(), Some(done));
    }

    /// Has the background worker find out which checkpoints the limits do not keep.
    pub(super) fn keep_within_limits(&self) {
        if !self.record.retention.is_unlimited() {
            self.shared.background.send(Work::Limit(Box::new(Limit {
                sandbox: self.record.id.clone(),
                limits: self.record.retention,
                checkpoints: self.candidates(),
                handle: self.handle.clone(),
            })));
        }
    }

    /// All checkpoints in the order they were made, for a choice of what has to go.
    pub(crate) fn candidates(&self) -> Vec<Candidate> {
        let exempt = self.exempt();
        let candidate = |node: &CheckpointRecord| Candidate {
            id: node.id.clone(),
            created_unix_ms: node.created_unix_ms,
            exempt: exempt.contains(&node.id),
            needs: Needs::of(node),
        };
        self.tree.iter().map(candidate).collect()
    }

    /// Checkpoints that no limit removes.
    fn exempt(&self) -> HashSet<CheckpointId> {
        let kept = self
            .tree
            .iter()
            .filter(|node| node.pinned || node.label.is_some());
        let mut exempt: HashSet<_> = kept.map(|node| node.id.clone()).collect();
        let mut next = self.tree.current().and_then(|id| self.tree.get(id));
        while let Some(node) = next {
            exempt.insert(node.id.clone());
            let parent = node.parent.as_ref().filter(|_| !self.record.retention.ancestors);
            next = parent.and_then(|id| self.tree.get(id));
        }
        exempt
    }

    /// Removes those of the checkpoints that no limit keeps, as it is now; returns which. `done` as in
    /// [`Self::remove_checkpoint`].
    pub(crate) fn retire(&mut self, ids: &[CheckpointId], done: Option<DurableReply>) -> Vec<CheckpointId> {
        let exempt = self.exempt();
        let there = |id: &&CheckpointId| self.tree.get(id).is_some() && !exempt.contains(id);
        let gone: Vec<_> = ids.iter().filter(there).cloned().collect();
        if !gone.is_empty() || done.is_some() {
            self.forget(&gone, done);
        }
        gone
    }

    /// What each checkpoint needs on disk, in the order of the log.
    pub(crate) fn needs(&self) -> Vec<Needs> {
        self.tree.iter().map(Needs::of).collect()
    }

    /// Takes checkpoints out of the tree, and has everything that only they needed removed. None is the current one.
    fn forget(&mut self, ids: &[CheckpointId], done: Option<DurableReply>) {
        let (mut gone, mut moved) = (Vec::new(), HashSet::new());
        for id in ids {
            if let Some((node, children)) = self.tree.remove(id) {
                gone.push(node);
                moved.extend(children);
            }
            for reply in self.waiting.remove(id).unwrap_or_default() {
                reply(Err(Error::conflict(format!(
                    "checkpoint {id} was removed meanwhile"
                ))));
            }
        }
        let moved = self.tree.iter().filter(|node| moved.contains(&node.id));
        let mut changes: Vec<Change> = moved
            .map(|node| Change::of(node, Edit::Parent(node.parent.clone())))
            .collect();
        changes.extend(gone.iter().map(|node| {
            let edit = Edit::Remove {
                frozen: node.frozen,
                contents: self.contents_only_of(node),
            };
            Change::of(node, edit)
        }));
        self.queue_changes(changes, done);
        // Many pages may go with them.
        self.shared.background.send(Work::Drop(Box::new(gone)));
    }

    /// Contents that no checkpoint of the tree needs besides this one, which is not in it any more. A later checkpoint
    /// takes contents over from the current one only.
    fn contents_only_of(&self, node: &CheckpointRecord) -> Vec<String> {
        let others: Option<Vec<_>> = self.tree.iter().map(|other| other.contents.as_ref()).collect();
        // Where one does not say what it needs, nothing can go.
        let Some(others) = others else { return Vec::new() };
        let needed: HashSet<&String> = others.into_iter().flatten().collect();
        let own = node.contents.iter().flatten();
        own.filter(|name| !needed.contains(name)).cloned().collect()
    }
}

impl Change {
    fn of(node: &CheckpointRecord, edit: Edit) -> Self {
        Self {
            checkpoint: node.id.clone(),
            sequence: node.sequence,
            edit,
        }
    }
}
