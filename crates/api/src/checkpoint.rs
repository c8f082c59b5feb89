use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What a checkpoint call waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wait {
    /// The checkpoint can be rolled back to.
    #[default]
    Ready,
    /// It survives a crash of the daemon and a loss of power, files and processes.
    Durable,
}

/// Body of `POST /v1/sandboxes/{name}/checkpoints`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct CheckpointRequest {
    pub label: Option<String>,
    /// Opaque; returned by a rollback to this checkpoint.
    pub token: Option<String>,
    /// Nothing removes it until it is unpinned.
    pub pin: bool,
    pub wait: Wait,
}

/// A checkpoint that was made.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CheckpointResult {
    pub id: String,
    pub parent: Option<String>,
    pub label: Option<String>,
    /// How long the sandbox stood still.
    pub stopped_ms: f64,
    pub total_ms: f64,
    pub phases_ms: BTreeMap<String, f64>,
    /// New bytes kept for files; absent when the store shares extents and the figure is not known at once.
    pub file_bytes: Option<u64>,
    /// New bytes kept for memory.
    pub memory_bytes: u64,
    /// How the files were frozen: `switch`, `snapshot` or `unchanged`.
    pub freeze: String,
    pub processes: usize,
    pub durable: bool,
}

/// Body of `POST /v1/sandboxes/{name}/rollback`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RollbackRequest {
    /// Id, unique prefix, label, `@`, `~N` or `@~N`.
    pub to: String,
}

/// A rollback that was done.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RollbackResult {
    pub id: String,
    /// Parent of the checkpoint rolled back to.
    pub parent: Option<String>,
    pub label: Option<String>,
    pub token: Option<String>,
    pub stopped_ms: f64,
    pub total_ms: f64,
    pub phases_ms: BTreeMap<String, f64>,
    /// Processes that existed at the checkpoint and live on.
    pub kept: usize,
    /// Processes that were made anew from the checkpoint.
    pub recreated: usize,
    /// Processes that did not exist at the checkpoint and were ended.
    pub ended: usize,
}

/// Body of `POST /v1/sandboxes/{name}/resume`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ResumeRequest {
    /// As [`RollbackRequest::to`]; absent: the current checkpoint.
    pub to: Option<String>,
}

/// Body of `POST /v1/gc`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct GcRequest {
    /// Only this sandbox; absent: all.
    pub sandbox: Option<String>,
}

/// Answer of `POST /v1/gc`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct GcResult {
    /// Checkpoints that the sandboxes' limits did not keep.
    pub removed: Vec<RemovedCheckpoint>,
    /// What only they needed on disk.
    pub freed_bytes: u64,
}

/// A checkpoint that is no more.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RemovedCheckpoint {
    pub sandbox: String,
    pub checkpoint: String,
}

/// Answer of `POST /v1/fsck`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct FsckResult {
    /// Durable checkpoints that were checked.
    pub checkpoints: usize,
    pub damaged: Vec<Damage>,
}

/// A checkpoint that is not whole. Those that are not named are.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Damage {
    pub sandbox: String,
    pub checkpoint: String,
    pub problem: String,
}

/// One node of the tree, as `log` shows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CheckpointInfo {
    pub id: String,
    pub parent: Option<String>,
    pub label: Option<String>,
    pub token: Option<String>,
    pub created_unix_ms: u64,
    pub file_bytes: Option<u64>,
    pub memory_bytes: u64,
    pub processes: usize,
    pub pinned: bool,
    pub durable: bool,
    /// What it takes on disk; absent unless asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskBytes>,
}

/// What something takes on disk, files and processes, without the filesystem's own books.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DiskBytes {
    /// What only one checkpoint of the sandbox needs: it goes with the checkpoint.
    pub private_bytes: u64,
    /// What several need.
    pub shared_bytes: u64,
}

/// Answer of `GET /v1/sandboxes/{name}/checkpoints`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Log {
    pub checkpoints: Vec<CheckpointInfo>,
    pub current: Option<String>,
    /// What all take together: the sum of their private bytes, and the shared ones, each counted once. Absent unless
    /// asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskBytes>,
}
