//! One sandbox: its live state, its tree, and the OS thread that owns both.
//!
//! States: *running* (a cell with the live file state) and *stopped* (only durable checkpoints). A rollback leads from
//! either to running; a failure past the point of no return leads from running to *failed*, which is *stopped* with
//! the last state's checkpoints.

mod checkpoint;
mod exec;
mod files;
mod fork;
mod history;
mod live;
mod pause;
mod processes;
mod queue;
mod thread;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use deltabox_api::{CheckpointInfo, ExecInfo, Log, SandboxInfo, SandboxStatus, Stats};

pub use exec::{ExecEnd, ExecStarted, ExecStdio, Notice};

pub(crate) use checkpoint::now_unix_ms;
pub use files::Export;
pub(crate) use fork::ForkPoint;
pub(crate) use live::Live;
pub(crate) use processes::ProcessState;
pub use thread::Handle;

use crate::background::Work;
use crate::catalog::{CheckpointRecord, SandboxRecord};
use crate::engine::Shared;
use crate::error::{Error, Result};
use crate::id::CheckpointId;
use crate::tree::Tree;

/// Told when a checkpoint has become durable, or why it will not.
pub type DurableReply = Box<dyn FnOnce(Result<()>) + Send>;

/// Process halves of checkpoints that stay in memory; others are read when they are needed. Few in debug builds, so that
/// tests meet it.
const MOST_IN_MEMORY: usize = if cfg!(debug_assertions) { 8 } else { 256 };

/// A sandbox as the thread that owns it sees it.
pub struct Sandbox {
    pub(crate) record: SandboxRecord,
    pub(crate) shared: Arc<Shared>,
    tree: Tree<CheckpointRecord>,
    live: Option<Live>,
    /// Why there is no live state although nobody stopped it.
    failure: Option<String>,
    /// It has no live state because it was paused.
    paused: bool,
    /// It is being removed: nothing of it is to come back.
    removed: bool,
    next_sequence: u64,
    waiting: HashMap<CheckpointId, Vec<DurableReply>>,
    /// Checkpoints that could not be made durable.
    failed: Vec<CheckpointId>,
    /// Checkpoints whose process half is in memory, the one used last at the end.
    in_memory: VecDeque<CheckpointId>,
    /// The sandbox's own queue, so that background work can report back.
    handle: Handle,
}

impl Sandbox {
    fn new(
        record: SandboxRecord,
        checkpoints: Vec<CheckpointRecord>,
        live: Option<Live>,
        shared: Arc<Shared>,
        handle: Handle,
    ) -> Self {
        let next_sequence = checkpoints.last().map_or(0, |node| node.sequence + 1);
        let tree = Tree::new(checkpoints, record.current.clone());
        Self {
            record,
            shared,
            tree,
            live,
            failure: None,
            paused: false,
            removed: false,
            next_sequence,
            waiting: HashMap::new(),
            failed: Vec::new(),
            in_memory: VecDeque::new(),
            handle,
        }
    }

    /// The live state, or an error that says how to get one.
    fn live(&mut self) -> Result<&mut Live> {
        let name = &self.record.name;
        let (failure, paused) = (self.failure.as_deref(), self.paused);
        self.live.as_mut().ok_or_else(|| {
            let stopped = if paused {
                "it is paused"
            } else {
                "the daemon was restarted"
            };
            let why = failure.unwrap_or(stopped);
            Error::conflict(format!("sandbox {name} is not running: {why}"))
                .hint(format!("`deltabox resume {name}` brings it back"))
        })
    }

    /// Ends what is live. From here on nothing is made live or durable any more.
    pub(crate) fn begin_removal(&mut self) {
        self.end("it was removed");
        self.removed = true;
    }

    /// It stays after all.
    pub(crate) fn give_up_removal(&mut self) {
        self.removed = false;
    }

    /// Host process id of the sandbox's init.
    pub fn init_pid(&mut self) -> Result<i32> {
        self.live().map(|live| live.init_pid())
    }

    pub fn info(&self) -> SandboxInfo {
        let record = &self.record;
        let status = match (&self.live, &self.failure) {
            (Some(_), _) => SandboxStatus::Running,
            (None, Some(_)) => SandboxStatus::Failed,
            (None, None) => SandboxStatus::Stopped,
        };
        SandboxInfo {
            id: record.id.to_string(),
            name: record.name.clone(),
            status,
            root: record.root.clone(),
            limits: record.limits.clone(),
            mounts: record.mounts.clone(),
            env: record.env.clone(),
            retention: record.retention,
            created_unix: record.created_unix,
            current: self.tree.current().map(ToString::to_string),
            checkpoints: self.tree.len(),
            init_pid: self.live.as_ref().map(Live::init_pid),
            execs: self.live.as_ref().map_or_else(Vec::new, Live::exec_infos),
            phases_ms: self
                .live
                .as_ref()
                .map(|live| live.created_phases.clone())
                .unwrap_or_default(),
        }
    }

    pub fn log(&self) -> Log {
        let checkpoints = self.tree.iter().map(checkpoint_info).collect();
        Log {
            checkpoints,
            current: self.tree.current().map(ToString::to_string),
            disk: None,
        }
    }

    pub fn stats(&mut self) -> Result<Stats> {
        let mut stats = Stats {
            checkpoints: self.tree.len(),
            ..Stats::default()
        };
        if let Some(live) = &self.live {
            live.add_stats(&mut stats)?;
        }
        Ok(stats)
    }

    /// Makes ahead what the next checkpoint or rollback needs.
    fn prepare(&mut self) {
        let shared = self.shared.clone();
        let _changing = shared.kept.changing();
        if let Some(live) = &mut self.live
            && let Err(error) = live.files.prepare()
        {
            // Costs the next operation time, nothing else.
            tracing::warn!(sandbox = %self.record.name, %error, "could not prepare ahead");
        }
    }

    /// Calls back once the checkpoint survives a crash, at once if it does already.
    pub fn when_durable(&mut self, id: &str, reply: DurableReply) {
        let id = CheckpointId::from(id);
        match self.tree.get(&id) {
            None => reply(Err(Error::not_found(format!("no checkpoint {id}")))),
            Some(node) if node.durable => reply(Ok(())),
            Some(node) => {
                // What could not be written before is tried again, or nobody would ever answer.
                let failed = node.failed;
                self.waiting.entry(id).or_default().push(reply);
                if failed {
                    let undone = self.take_failed();
                    self.queue_durable(undone);
                }
                self.shared.background.send(Work::Hurry);
            }
        }
    }

    /// Notes that the process half of a checkpoint has just been used.
    fn used(&mut self, id: &CheckpointId) {
        self.in_memory.retain(|other| other != id);
        self.in_memory.push_back(id.clone());
    }

    /// Drops process halves that were used longest ago and can be read back, so that memory does not grow with history.
    fn leave_memory(&mut self) {
        let mut gone = Vec::new();
        let excess = self.in_memory.len().saturating_sub(MOST_IN_MEMORY);
        for _ in 0..excess {
            let Some(id) = self.in_memory.pop_front() else {
                break;
            };
            match self.tree.get_mut(&id) {
                Some(node) if node.durable && node.saved.is_some() => gone.push(node.process_state.take()),
                Some(node) if node.process_state.is_some() => self.in_memory.push_back(id),
                _ => {}
            }
        }
        if !gone.is_empty() {
            self.shared.background.send(Work::Drop(Box::new(gone)));
        }
    }

    /// Reported by the background worker after it synced and wrote (or failed to write) these checkpoints.
    pub(crate) fn made_durable(&mut self, written: &[CheckpointRecord], result: &Result<()>) {
        for record in written {
            if let Some(node) = self.tree.get_mut(&record.id) {
                node.durable = result.is_ok();
                node.failed = result.is_err();
                node.file_bytes = record.file_bytes;
                node.saved.clone_from(&record.saved);
                if node.failed {
                    self.failed.push(record.id.clone());
                }
            }
            for reply in self.waiting.remove(&record.id).unwrap_or_default() {
                reply(result.clone());
            }
        }
        if !written.is_empty() {
            self.leave_memory();
            self.keep_within_limits();
        }
    }
}

fn checkpoint_info(node: &CheckpointRecord) -> CheckpointInfo {
    CheckpointInfo {
        id: node.id.to_string(),
        parent: node.parent.as_ref().map(ToString::to_string),
        label: node.label.clone(),
        token: node.token.clone(),
        created_unix_ms: node.created_unix_ms,
        file_bytes: node.file_bytes,
        memory_bytes: node.memory_bytes,
        processes: node.processes,
        pinned: node.pinned,
        durable: node.durable,
        disk: None,
    }
}

/// One line of `inspect` per command that has not ended.
pub(crate) fn exec_info(id: &crate::id::ExecId, exec: &exec::Exec) -> ExecInfo {
    ExecInfo {
        id: id.to_string(),
        pid: exec.pid_inside,
        argv: exec.argv.clone(),
        tty: exec.tty,
    }
}
