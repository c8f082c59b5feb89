//! Work off the critical path, on one thread for all sandboxes: durability, limits, old mounts.

use std::any::Any;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use deltabox_api::Retention;
use deltabox_layers::{Store, Top};

use crate::catalog::{Catalog, Change, CheckpointRecord, Edit, SandboxRecord, changed};
use crate::contents::Contents;
use crate::engine::Kept;
use crate::error::{Error, Result};
use crate::id::{CheckpointId, SandboxId};
use crate::ledger::Disk;
use crate::retention::{Candidate, excess};
use crate::sandbox::{DurableReply, Handle, now_unix_ms};
use crate::segments::{Saved, SegmentId, Segments};
use crate::squasher::step_back;
use crate::steps;

pub(crate) enum Work {
    /// Sync the store, then write the sandbox's record, these checkpoints, and what becomes of others.
    Durable(Box<Pending>),
    /// Somebody waits for what is to be made durable.
    Hurry,
    /// Remove what a sandbox's limits do not keep.
    Limit(Box<Limit>),
    /// Give up what an earlier daemon left.
    Sweep,
    /// Give up everything that nobody needs, and hand its space back; answered when that is done.
    Reclaim(Sender<Result<()>>),
    /// The sandbox is gone: forget its record, and whatever still waits for it.
    Forget {
        sandbox: SandboxId,
        done: Sender<Result<()>>,
    },
    /// Something whose release can take long.
    Drop(Box<dyn Any + Send>),
    Stop,
}

/// Checkpoints of a sandbox and how many of them it keeps.
pub(crate) struct Limit {
    pub sandbox: SandboxId,
    pub limits: Retention,
    pub checkpoints: Vec<Candidate>,
    pub handle: Handle,
}

/// The queue to the worker.
#[derive(Clone)]
pub(crate) struct Background {
    queue: Sender<Work>,
}

impl Background {
    pub fn start(means: Means) -> Result<(Self, JoinHandle<()>)> {
        let (queue, receive) = channel();
        let worker = Worker {
            means,
            pending: HashMap::new(),
            gathering: None,
        };
        let thread = std::thread::Builder::new()
            .name("background".into())
            .spawn(move || worker.run(&receive));
        let thread = thread.map_err(|error| Error::io("cannot start the background thread", &error))?;
        Ok((Self { queue }, thread))
    }

    pub fn send(&self, work: Work) {
        // After the worker stopped nothing is left that would have to be kept.
        let _ = self.queue.send(work);
    }
}

/// What the background thread works with.
pub(crate) struct Means {
    pub store: Store,
    pub catalog: Arc<Catalog>,
    pub kept: Arc<Kept>,
    pub segments: Arc<Segments>,
    pub contents: Contents,
    pub needed: Needed,
}

/// What the checkpoints of each sandbox need of the segments.
pub(crate) type Needed = HashMap<SandboxId, HashMap<CheckpointId, Saved>>;

struct Worker {
    means: Means,
    /// What is to be made durable, and when the first and the last of it came.
    pending: HashMap<SandboxId, Pending>,
    gathering: Option<(Instant, Instant)>,
}

/// Making things durable takes the disk and a processor away from the next checkpoint and rollback, and costs about the
/// same for many as for one. It begins when somebody waits for it, when nothing new has come for this long,
const QUIET: Duration = Duration::from_millis(50);
/// or when something has waited for this long.
const LONGEST: Duration = Duration::from_millis(500);

/// What one sync makes durable for one sandbox.
pub(crate) struct Pending {
    pub sandbox: SandboxRecord,
    pub checkpoints: Vec<CheckpointRecord>,
    /// Made after these checkpoints are written, in this order.
    pub changes: Vec<Change>,
    /// Told when the catalog holds the changes.
    pub done: Vec<DurableReply>,
    pub handle: Handle,
}

impl Pending {
    fn add(&mut self, new: Pending) {
        self.checkpoints = changed(std::mem::take(&mut self.checkpoints), &new.changes);
        self.checkpoints.extend(new.checkpoints);
        self.sandbox = new.sandbox;
        self.changes.extend(new.changes);
        self.done.extend(new.done);
        self.handle = new.handle;
    }
}

impl Worker {
    fn run(mut self, receive: &Receiver<Work>) {
        step_back();
        loop {
            let first = match self.patience() {
                None => receive.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(patience) => receive.recv_timeout(patience),
            };
            let mut batch = match first {
                Ok(work) => vec![work],
                Err(RecvTimeoutError::Timeout) => vec![Work::Hurry],
                Err(RecvTimeoutError::Disconnected) => return,
            };
            batch.extend(receive.try_iter());
            if !self.carry_out(batch) {
                return;
            }
        }
    }

    /// How much longer to gather what is to be made durable; `None` if there is nothing.
    fn patience(&self) -> Option<Duration> {
        let (first, last) = self.gathering?;
        let until = (last + QUIET).min(first + LONGEST);
        Some(until.saturating_duration_since(Instant::now()))
    }

    /// `false` ends the worker, after all earlier work was done.
    fn carry_out(&mut self, batch: Vec<Work>) -> bool {
        let (mut go_on, mut hurry, mut removed) = (true, false, false);
        let (mut forget, mut limits, mut reclaim) = (Vec::new(), HashMap::new(), Vec::new());
        for work in batch {
            match work {
                Work::Drop(thing) => drop(thing),
                // Of several, the last one knows all checkpoints.
                Work::Limit(limit) => drop(limits.insert(limit.sandbox.clone(), limit)),
                Work::Reclaim(done) => reclaim.push(done),
                Work::Hurry => hurry = true,
                Work::Sweep => removed = true,
                Work::Stop => go_on = false,
                Work::Forget { sandbox, done } => forget.push((sandbox, done)),
                Work::Durable(new) => self.gather(*new),
            }
        }
        removed |= !forget.is_empty();
        for (sandbox, done) in forget {
            let _ = done.send(self.forget_sandbox(&sandbox));
        }
        if hurry || !go_on {
            self.gathering = None;
            let pending = std::mem::take(&mut self.pending);
            removed |= self.make_durable(pending);
        }
        if removed && let Err(error) = self.means.kept.collect_hidden(&self.means.store, false) {
            tracing::error!(%error, "layers that nobody needs could not be removed");
        }
        for limit in limits.into_values() {
            self.limit(&limit);
        }
        if !reclaim.is_empty() {
            let reclaimed = self.reclaim();
            reclaim
                .into_iter()
                .for_each(|done| drop(done.send(reclaimed.clone())));
        }
        go_on
    }

    fn limit(&self, limit: &Limit) {
        let Limit {
            sandbox,
            limits,
            checkpoints,
            handle,
        } = limit;
        let mut ledger = None;
        if limits.keep_bytes.is_some() {
            let needs: Vec<_> = checkpoints
                .iter()
                .map(|candidate| candidate.needs.clone())
                .collect();
            let disk = Disk {
                store: &self.means.store,
                segments: &self.means.segments,
                contents: &self.means.contents,
            };
            match disk.ledger(sandbox, &needs) {
                Ok(found) => ledger = Some(found),
                Err(error) => tracing::error!(%error, "cannot find out what checkpoints take"),
            }
        }
        let gone = excess(limits, now_unix_ms(), checkpoints, ledger.as_mut());
        if !gone.is_empty() {
            handle.submit(move |sandbox| drop(sandbox.retire(&gone, None)));
        }
    }

    fn reclaim(&self) -> Result<()> {
        self.means.kept.collect_hidden(&self.means.store, true)?;
        Ok(self.means.store.reclaim()?)
    }

    fn gather(&mut self, new: Pending) {
        let now = Instant::now();
        let first = self.gathering.map_or(now, |(first, _)| first);
        self.gathering = Some((first, now));
        match self.pending.entry(new.sandbox.id.clone()) {
            Entry::Vacant(entry) => drop(entry.insert(new)),
            Entry::Occupied(mut entry) => entry.get_mut().add(new),
        }
    }

    /// Segments that no checkpoint needs any more go with these.
    fn forget_segments(&mut self, gone: impl IntoIterator<Item = Saved>) {
        let mut unneeded: HashSet<SegmentId> = gone
            .into_iter()
            .flat_map(|saved| saved.all().collect::<Vec<_>>())
            .collect();
        if unneeded.is_empty() {
            return;
        }
        let others = self.means.needed.values().flat_map(HashMap::values);
        for id in others.flat_map(Saved::all) {
            unneeded.remove(&id);
        }
        self.means.segments.remove(unneeded);
    }

    /// Gives up everything of a sandbox, once the catalog does not know it any more.
    fn forget_sandbox(&mut self, sandbox: &SandboxId) -> Result<()> {
        self.means.catalog.remove(sandbox)?;
        self.pending.remove(sandbox);
        self.means.kept.remove_all(sandbox);
        let gone = self.means.needed.remove(sandbox).unwrap_or_default();
        self.forget_segments(gone.into_values());
        self.means.contents.remove_all(sandbox);
        Ok(())
    }

    /// The catalog does not know these checkpoints any more: gives up what only they needed. Whether layers of files may
    /// be among that is returned; they are left to be collected.
    fn forget(&mut self, sandbox: &SandboxId, changes: Vec<Change>) -> bool {
        let (mut saved, mut any) = (Vec::new(), false);
        for change in changes {
            if let Edit::Remove { frozen, contents } = change.edit {
                any = true;
                self.means.kept.remove(sandbox, frozen);
                self.means.contents.remove(sandbox, &contents);
                let needed = self.means.needed.get_mut(sandbox);
                saved.extend(needed.and_then(|needed| needed.remove(&change.checkpoint)));
            }
        }
        self.forget_segments(saved);
        any
    }

    /// Writes the process halves that are not on disk yet.
    fn save(&mut self, sandbox: &SandboxId, checkpoints: &mut [CheckpointRecord]) -> Result<()> {
        for node in checkpoints {
            let Some(state) = &node.process_state else {
                continue;
            };
            let failed = |error: std::io::Error| Error::io("cannot write the processes to disk", &error);
            self.means.contents.sync(sandbox, state).map_err(failed)?;
            // A fork point may have been written already, by a sandbox that has been removed since.
            let there = node.saved.take().filter(|saved| self.means.segments.has(saved));
            let saved = match there {
                Some(saved) => saved,
                None => self.means.segments.write(state.save()).map_err(failed)?,
            };
            let needed = self.means.needed.entry(sandbox.clone()).or_default();
            needed.insert(node.id.clone(), saved.clone());
            node.saved = Some(saved);
        }
        Ok(())
    }

    /// Whether checkpoints were removed is returned.
    fn make_durable(&mut self, pending: HashMap<SandboxId, Pending>) -> bool {
        if pending.is_empty() {
            return false;
        }
        let mut removed = false;
        let needs_sync = pending.values().any(|p| !p.checkpoints.is_empty());
        let synced: Result<()> = if needs_sync {
            let step = steps::other().map_err(|error| Error::io("cannot sync the store", &error));
            step.and_then(|()| Ok(self.means.store.sync()?))
        } else {
            Ok(())
        };
        for (id, mut pending) in pending {
            self.measure(&mut pending.checkpoints);
            let Pending {
                sandbox,
                checkpoints,
                changes,
                done,
                handle,
            } = &mut pending;
            let result = synced
                .clone()
                .and_then(|()| self.save(&id, checkpoints))
                .and_then(|()| self.means.catalog.put(sandbox, checkpoints, changes));
            let mut recorded = result.clone();
            if let Err(error) = &result {
                tracing::error!(sandbox = %sandbox.name, %error, "checkpoints could not be made durable");
                // What takes space can be removed even where there is none.
                if !changes.is_empty() {
                    recorded = self.means.catalog.put(sandbox, &[], changes);
                }
            }
            let (done, checkpoints) = (std::mem::take(done), std::mem::take(checkpoints));
            handle.submit(move |sandbox| sandbox.made_durable(&checkpoints, &result));
            match &recorded {
                Ok(()) => removed |= self.forget(&id, std::mem::take(changes)),
                // Tried again with whatever comes next.
                Err(_) if !changes.is_empty() => drop(self.pending.insert(id, pending)),
                Err(_) => {}
            }
            done.into_iter().for_each(|reply| reply(recorded.clone()));
        }
        removed
    }

    /// Notes how much a layer holds. A snapshot shares what it holds, and counting it would read all of it.
    fn measure(&self, checkpoints: &mut [CheckpointRecord]) {
        for node in checkpoints {
            if node.file_bytes.is_none() && matches!(node.frozen.top, Top::Layer(_)) {
                node.file_bytes = self.means.store.measure(&node.frozen).ok().map(|size| size.bytes);
            }
        }
    }
}
