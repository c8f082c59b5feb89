//! Checkpoint and rollback: files and processes of one instant, or nothing.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use deltabox_api::{CheckpointRequest, CheckpointResult, RollbackResult};
use deltabox_layers::Way;

use super::exec::ExecEnd;
use super::{Live, Sandbox};
use crate::background::Work;
use crate::catalog::CheckpointRecord;
use crate::error::{Error, Result};
use crate::id::CheckpointId;

/// How long the processes may take to stop.
const STOP_LIMIT: Duration = Duration::from_secs(2);

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
        let live = self.live()?;
        let frozen = live.freeze()?;
        let id = CheckpointId::random();
        let record = CheckpointRecord {
            id: id.clone(),
            parent: self.tree.current().cloned(),
            label: request.label.clone(),
            token: request.token.clone(),
            created_unix_ms: now_unix_ms(),
            sequence: self.next_sequence,
            frozen: frozen.state,
            file_bytes: frozen.bytes,
            memory_bytes: 0,
            processes: frozen.processes,
            durable: false,
        };
        self.next_sequence += 1;
        self.record.current = Some(id.clone());
        self.shared.kept.add(&self.record.id, [record.frozen]);
        self.tree.push(record.clone());
        self.queue_durable(vec![record.clone()]);
        Ok(CheckpointResult {
            id: id.to_string(),
            parent: record.parent.as_ref().map(ToString::to_string),
            label: record.label,
            stopped_ms: ms(frozen.stopped),
            total_ms: ms(start.elapsed()),
            phases_ms: frozen.phases.into_map(),
            file_bytes: record.file_bytes,
            memory_bytes: 0,
            freeze: frozen.way.to_owned(),
            processes: record.processes,
            durable: false,
        })
    }

    /// Returns to a checkpoint, which all others outlive. From a stopped or failed sandbox it makes a new cell.
    pub fn rollback(&mut self, to: &str) -> Result<RollbackResult> {
        let start = Instant::now();
        let target = self.tree.resolve(to)?.clone();
        let mut phases = Phases::default();
        let mut ended = 0;
        let stopped = match &mut self.live {
            Some(live) => {
                let result = live.rollback(&target, &mut phases);
                match result {
                    Ok(done) => {
                        ended = done.ended;
                        done.stopped
                    }
                    Err(failure) => return Err(self.rollback_failed(failure)),
                }
            }
            None => {
                let (record, shared) = (&mut self.record, &self.shared);
                self.live = Some(phases.time("start", || Live::start(record, shared, Some(&target.frozen)))?);
                self.failure = None;
                Duration::ZERO
            }
        };
        self.tree.set_current(target.id.clone());
        self.record.current = Some(target.id.clone());
        self.queue_durable(Vec::new());
        Ok(RollbackResult {
            id: target.id.to_string(),
            parent: target.parent.map(|id| id.to_string()),
            label: target.label,
            token: target.token,
            stopped_ms: ms(stopped),
            total_ms: ms(start.elapsed()),
            phases_ms: phases.into_map(),
            kept: 0,
            recreated: 0,
            ended,
        })
    }

    fn rollback_failed(&mut self, failure: RollbackFailure) -> Error {
        match failure {
            RollbackFailure::Untouched(error) => error,
            RollbackFailure::Broken(error) => {
                self.fail(format!("a rollback failed half-way: {error}"));
                error.hint("the sandbox was ended; roll back to any of its checkpoints to bring it back")
            }
        }
    }

    /// Has the background worker sync the store and write the record and these checkpoints.
    pub(crate) fn queue_durable(&self, checkpoints: Vec<CheckpointRecord>) {
        self.shared.background.send(Work::Durable {
            sandbox: self.record.clone(),
            checkpoints,
            handle: self.handle.clone(),
        });
    }
}

/// How a rollback of a live sandbox failed.
pub(super) enum RollbackFailure {
    /// Before anything was changed.
    Untouched(Error),
    /// Past the point of no return.
    Broken(Error),
}

/// The file half of a checkpoint, frozen while the sandbox stood still.
pub(super) struct FrozenNow {
    pub state: deltabox_layers::Frozen,
    pub way: &'static str,
    pub bytes: Option<u64>,
    pub processes: usize,
    pub stopped: Duration,
    pub phases: Phases,
}

/// What a rollback in place did.
pub(super) struct RolledBack {
    pub stopped: Duration,
    pub ended: usize,
}

impl Live {
    /// Freezes the files at one instant. Without processes by switch, with processes by snapshot.
    pub(super) fn freeze(&mut self) -> Result<FrozenNow> {
        let mut phases = Phases::default();
        let processes = phases.time("survey", || self.cell.cgroup().procs())?.len();
        if processes == 0 {
            return self.freeze_empty(phases);
        }
        // Written back before the stop, so that the snapshot finds little to do.
        phases.time("flush", || self.files.flush())?;
        let stop = Instant::now();
        phases.time("stop", || self.cell.cgroup().freeze(STOP_LIMIT))?;
        let frozen = phases.time("snapshot", || self.files.freeze(Way::Snapshot));
        let thawed = phases.time("resume", || self.cell.cgroup().thaw());
        let stopped = stop.elapsed();
        thawed?;
        let frozen = frozen?;
        let way = if frozen.unchanged { "unchanged" } else { "snapshot" };
        Ok(FrozenNow {
            state: frozen.frozen,
            way,
            bytes: None,
            processes,
            stopped,
            phases,
        })
    }

    fn freeze_empty(&mut self, mut phases: Phases) -> Result<FrozenNow> {
        let frozen = phases.time("switch", || self.files.freeze(Way::Switch))?;
        if let Some(mount) = frozen.mount {
            phases.time("attach", || self.switch_root(mount, frozen.retired))?;
        }
        let way = if frozen.unchanged { "unchanged" } else { "switch" };
        Ok(FrozenNow {
            state: frozen.frozen,
            way,
            bytes: None,
            processes: 0,
            stopped: Duration::ZERO,
            phases,
        })
    }

    /// Ends all processes and puts the target's files in place.
    pub(super) fn rollback(
        &mut self,
        target: &CheckpointRecord,
        phases: &mut Phases,
    ) -> std::result::Result<RolledBack, RollbackFailure> {
        let start = Instant::now();
        let switched = phases.time("mount", || self.files.rollback(&target.frozen));
        let switched = switched.map_err(|error| RollbackFailure::Untouched(error.into()))?;
        let broken = |error: Error| RollbackFailure::Broken(error);
        let ended = self.cell.cgroup().procs().map_err(|e| broken(e.into()))?.len();
        if ended > 0 {
            phases
                .time("end processes", || self.cell.kill_all())
                .map_err(|e| broken(e.into()))?;
        }
        let id = target.id.clone();
        self.end_execs(|| ExecEnd::Discarded(id.clone()));
        phases
            .time("attach", || self.switch_root(switched.mount, switched.retired))
            .map_err(broken)?;
        Ok(RolledBack {
            stopped: start.elapsed(),
            ended,
        })
    }
}

fn now_unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |age| age.as_millis() as u64)
}
