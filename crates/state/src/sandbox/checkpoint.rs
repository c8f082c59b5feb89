//! Checkpoint and rollback: files and processes of one instant, or nothing.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use deltabox_api::{CheckpointRequest, CheckpointResult, RollbackResult};
use deltabox_layers::Way;

use super::live::switch_root;
use super::processes::{Failed, ProcessState, Restored};
use super::{DurableReply, Live, Sandbox};
use crate::background::{Pending, Work};
use crate::catalog::{Change, CheckpointRecord};
use crate::clocks::Clocks;
use crate::contents;
use crate::error::{Error, Result};
use crate::id::CheckpointId;

/// Durations of the steps of one operation, in the order they were taken.
#[derive(Default)]
pub(super) struct Phases(BTreeMap<String, f64>);

impl Phases {
    pub fn time<T>(&mut self, name: &str, step: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = step();
        self.add(name, start.elapsed());
        result
    }

    pub fn add(&mut self, name: &str, duration: Duration) {
        *self.0.entry(name.to_owned()).or_default() += ms(duration);
    }

    pub fn extend(&mut self, phases: &[(&'static str, Duration)]) {
        for (name, duration) in phases {
            self.add(name, *duration);
        }
    }

    pub fn into_map(self) -> BTreeMap<String, f64> {
        self.0
    }
}

pub(super) fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

impl Sandbox {
    /// Saves the state; on any error the sandbox runs on as if nothing had been asked.
    pub fn checkpoint(&mut self, request: &CheckpointRequest) -> Result<CheckpointResult> {
        let start = Instant::now();
        if let Some(label) = &request.label {
            self.tree.check_label(label)?;
        }
        let shared = self.shared.clone();
        let _changing = shared.kept.changing();
        let frozen = self.live()?.freeze()?;
        let id = CheckpointId::random();
        let record = CheckpointRecord {
            id: id.clone(),
            parent: self.tree.current().cloned(),
            label: request.label.clone(),
            token: request.token.clone(),
            created_unix_ms: now_unix_ms(),
            sequence: self.next_sequence,
            frozen: frozen.files,
            file_bytes: (frozen.way == "unchanged").then_some(0),
            memory_bytes: frozen.memory_bytes,
            processes: frozen.processes.as_ref().map_or(0, ProcessState::len),
            contents: Some(frozen.processes.as_ref().map_or_else(Vec::new, contents::names)),
            pinned: request.pin,
            moment: frozen.processes.as_ref().map(|state| state.moment),
            process_state: frozen.processes,
            saved: None,
            failed: false,
            durable: false,
        };
        self.next_sequence += 1;
        self.record.current = Some(id.clone());
        self.shared.kept.add(&self.record.id, [record.frozen]);
        self.tree.push(record.clone());
        if record.process_state.is_some() {
            self.used(&id);
        }
        let mut undone = self.take_failed();
        undone.push(record.clone());
        self.queue_durable(undone);
        let squash = self.live()?.files.squash_job();
        self.shared.squasher.squash(squash);
        Ok(CheckpointResult {
            id: id.to_string(),
            parent: record.parent.as_ref().map(ToString::to_string),
            label: record.label,
            stopped_ms: ms(frozen.stopped),
            total_ms: ms(start.elapsed()),
            phases_ms: frozen.phases.into_map(),
            file_bytes: record.file_bytes,
            memory_bytes: record.memory_bytes,
            freeze: frozen.way.to_owned(),
            processes: record.processes,
            durable: false,
        })
    }

    /// Returns to a checkpoint, which all others outlive. From a stopped or failed sandbox it makes a new cell.
    pub fn rollback(&mut self, to: &str) -> Result<RollbackResult> {
        let start = Instant::now();
        let mut phases = Phases::default();
        if self.removed {
            return Err(Error::conflict("the sandbox is being removed"));
        }
        let target = self.loaded(to, &mut phases)?;
        let shared = self.shared.clone();
        let _changing = shared.kept.changing();
        let done = match &mut self.live {
            Some(live) => match live.rollback(&target, &mut phases) {
                Ok(done) => done,
                Err(failure) => return Err(self.rollback_failed(failure)),
            },
            None => self.start_again(&target, &mut phases)?,
        };
        self.tree.set_current(target.id.clone());
        self.record.current = Some(target.id.clone());
        self.queue_durable(Vec::new());
        Ok(RollbackResult {
            id: target.id.to_string(),
            parent: target.parent.map(|id| id.to_string()),
            label: target.label,
            token: target.token,
            stopped_ms: ms(done.stopped),
            total_ms: ms(start.elapsed()),
            phases_ms: phases.into_map(),
            kept: done.processes.kept,
            recreated: done.processes.recreated,
            ended: done.processes.ended,
        })
    }

    /// A checkpoint with its process half in memory.
    pub(super) fn loaded(&mut self, reference: &str, phases: &mut Phases) -> Result<CheckpointRecord> {
        let mut node = self.tree.resolve(reference)?.clone();
        if let (None, Some(saved)) = (&node.process_state, &node.saved) {
            let read = phases.time("read", || {
                self.shared.segments.read(saved.segment, &self.shared.pages)
            });
            let state = read.map_err(|error| unreadable(&node.id, &error))?;
            node.process_state = Some(ProcessState::from_saved(state, node.moment));
            if let Some(kept) = self.tree.get_mut(&node.id) {
                kept.process_state.clone_from(&node.process_state);
            }
        }
        if node.process_state.is_some() {
            self.used(&node.id);
        }
        if node.processes > 0 && node.process_state.is_none() {
            return Err(Error::conflict(format!(
                "the processes of checkpoint {} were never written to disk",
                node.id
            ))
            .hint("its files can be had with `deltabox restore` and `deltabox export`"));
        }
        Ok(node)
    }

    /// Checkpoints that could not be made durable, for another try.
    pub(super) fn take_failed(&mut self) -> Vec<CheckpointRecord> {
        let mut found = Vec::new();
        for id in std::mem::take(&mut self.failed) {
            if let Some(node) = self.tree.get_mut(&id)
                && std::mem::take(&mut node.failed)
            {
                found.push(node.clone());
            }
        }
        found
    }

    /// Makes a new cell for a sandbox that has none.
    fn start_again(&mut self, target: &CheckpointRecord, phases: &mut Phases) -> Result<RolledBack> {
        let (record, shared) = (&self.record, &self.shared);
        // Rollbacks to any of them may follow, and a cell's clocks are set once.
        let moments = self.tree.iter().filter_map(|node| node.moment);
        let clocks = Clocks::ahead_for(moments, Clocks::now());
        let mut live = phases.time("start", || {
            Live::start(record, shared, Some(&target.frozen), clocks)
        })?;
        let processes = match &target.process_state {
            Some(state) => live.make_all(state, phases)?,
            None => Restored::default(),
        };
        self.live = Some(live);
        self.failure = None;
        self.paused = false;
        Ok(RolledBack {
            stopped: Duration::ZERO,
            processes,
        })
    }

    fn rollback_failed(&mut self, failure: Failed) -> Error {
        match failure {
            Failed::Untouched(error) => error,
            Failed::Broken(error) => {
                self.fail(format!("a rollback failed half-way: {error}"));
                error.hint("the sandbox was ended; roll back to any of its checkpoints to bring it back")
            }
        }
    }

    /// Has the background worker sync the store and write the record and these checkpoints.
    pub(crate) fn queue_durable(&self, checkpoints: Vec<CheckpointRecord>) {
        self.queue(checkpoints, Vec::new(), None);
    }

    /// Has the background worker change what the catalog holds; `done` is told then.
    pub(super) fn queue_changes(&self, changes: Vec<Change>, done: Option<DurableReply>) {
        let waits = done.is_some();
        self.queue(Vec::new(), changes, done);
        if waits {
            self.shared.background.send(Work::Hurry);
        }
    }

    pub(super) fn queue(
        &self,
        checkpoints: Vec<CheckpointRecord>,
        changes: Vec<Change>,
        done: Option<DurableReply>,
    ) {
        if self.removed {
            return;
        }
        self.shared.background.send(Work::Durable(Box::new(Pending {
            sandbox: self.record.clone(),
            checkpoints,
            changes,
            done: done.into_iter().collect(),
            handle: self.handle.clone(),
        })));
    }
}

fn unreadable(id: &CheckpointId, error: &std::io::Error) -> Error {
    Error::internal(&format!("the processes of checkpoint {id} cannot be read"), error)
        .hint("`deltabox fsck` says which checkpoints are whole")
}

/// Both halves of a checkpoint, taken while the sandbox stood still.
pub(super) struct FrozenNow {
    pub files: deltabox_layers::Frozen,
    pub way: &'static str,
    pub processes: Option<ProcessState>,
    pub memory_bytes: u64,
    pub stopped: Duration,
    pub phases: Phases,
}

/// What a rollback in place did.
pub(super) struct RolledBack {
    pub stopped: Duration,
    pub processes: Restored,
}

impl Live {
    /// Freezes files and processes at one instant. Without processes (and what they may have left) the files are frozen by switch; with processes
    /// by snapshot, of which they notice nothing.
    pub(super) fn freeze(&mut self) -> Result<FrozenNow> {
        let mut phases = Phases::default();
        let empty = phases.time("look", || self.cell.cgroup().procs())?.is_empty();
        if empty && !phases.time("look", || self.processes.left_something())? {
            return self.freeze_empty(phases);
        }
        self.freeze_ahead(&mut phases)?;
        let execs = self.execs.keys().cloned().collect();
        let (files, stop) = (&mut self.files, Instant::now());
        let (processes, frozen, memory_bytes) = self
            .processes
            .capture(execs, &mut phases, || Ok(files.freeze(Way::Snapshot)?))
            .inspect_err(|_| self.files.forget_frozen())?;
        let stopped = stop.elapsed();
        self.checkpointed.extend(processes.execs.iter().cloned());
        let way = if frozen.unchanged { "unchanged" } else { "snapshot" };
        Ok(FrozenNow {
            files: frozen.frozen,
            way,
            processes: Some(processes),
            memory_bytes,
            stopped,
            phases,
        })
    }

    /// What can be done while the processes run, so that they have to stand still for less.
    fn freeze_ahead(&mut self, phases: &mut Phases) -> Result<()> {
        let (files, processes) = (&mut self.files, &mut self.processes);
        let (done, took) = std::thread::scope(|scope| {
            let files = scope.spawn(|| {
                let start = Instant::now();
                (files.freeze_ahead(), start.elapsed())
            });
            phases.time("ahead", || processes.copy_ahead());
            files
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        phases.add("files ahead (beside)", took);
        Ok(done?)
    }

    fn freeze_empty(&mut self, mut phases: Phases) -> Result<FrozenNow> {
        let frozen = phases.time("switch", || self.files.freeze(Way::Switch))?;
        if let Some(mount) = frozen.mount {
            phases.time("attach", || self.switch_root(mount, frozen.retired))?;
        }
        let way = if frozen.unchanged { "unchanged" } else { "switch" };
        let stopped = Duration::ZERO;
        Ok(FrozenNow {
            files: frozen.frozen,
            way,
            processes: None,
            memory_bytes: 0,
            stopped,
            phases,
        })
    }

    /// Puts the target's files in place and makes the processes what they were.
    pub(super) fn rollback(
        &mut self,
        target: &CheckpointRecord,
        phases: &mut Phases,
    ) -> std::result::Result<RolledBack, Failed> {
        let start = Instant::now();
        let Some(state) = &target.process_state else {
            let ended = self.rollback_empty(target, phases)?;
            return Ok(RolledBack {
                stopped: start.elapsed(),
                processes: Restored {
                    ended,
                    ..Restored::default()
                },
            });
        };
        let broken = |error: Error| Failed::Broken(error);
        self.processes
            .substitute_externals(state, &self.shared.null)
            .map_err(Failed::Untouched)?;
        let Self {
            cell,
            processes,
            files,
            root,
            shared,
            ..
        } = &mut *self;
        let in_place = processes.restore(state, phases, || {
            let switched = files
                .rollback(&target.frozen)
                .map_err(|error| Failed::Untouched(error.into()))?;
            switch_root(cell, root, shared, switched.mount, switched.retired).map_err(Failed::Broken)
        });
        let restored = match in_place {
            Err(Failed::Broken(error)) => {
                tracing::warn!(%error, "a rollback in place failed; all processes are made again");
                self.recreate(state, phases).map_err(broken)?
            }
            other => other?,
        };
        let stopped = start.elapsed();
        self.follow_execs(&state.execs, &restored.born);
        self.tell_execs(&target.id, &state.execs);
        Ok(RolledBack {
            stopped,
            processes: restored,
        })
    }

    /// Makes all processes of a state from nothing; its files are in place.
    pub(super) fn recreate(&mut self, state: &ProcessState, phases: &mut Phases) -> Result<Restored> {
        phases.time("end processes", || self.cell.kill_all())?;
        self.make_all(state, phases)
    }

    /// Makes all processes of a state in a cell that has none; its files are in place.
    fn make_all(&mut self, state: &ProcessState, phases: &mut Phases) -> Result<Restored> {
        self.processes.substitute_externals(state, &self.shared.null)?;
        let root = self.cell.root()?;
        self.processes
            .restore(state, phases, || Ok(root))
            .map_err(|failed| match failed {
                Failed::Untouched(error) | Failed::Broken(error) => error,
            })
    }

    /// Ends all processes, because there were none, and puts the target's files in place.
    fn rollback_empty(
        &mut self,
        target: &CheckpointRecord,
        phases: &mut Phases,
    ) -> std::result::Result<usize, Failed> {
        let broken = |error: Error| Failed::Broken(error);
        let ended = self
            .cell
            .cgroup()
            .procs()
            .map_err(|error| Failed::Untouched(error.into()))?
            .len();
        let switched = phases.time("mount", || self.files.rollback(&target.frozen));
        let switched = switched.map_err(|error| Failed::Untouched(error.into()))?;
        if ended > 0 {
            phases
                .time("end processes", || self.cell.kill_all())
                .map_err(|e| broken(e.into()))?;
        }
        phases
            .time("end processes", || self.processes.remove_leftovers())
            .map_err(broken)?;
        self.tell_execs(&target.id, &[]);
        phases
            .time("attach", || self.switch_root(switched.mount, switched.retired))
            .map_err(broken)?;
        Ok(ended)
    }
}

pub(crate) fn now_unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |age| age.as_millis() as u64)
}
