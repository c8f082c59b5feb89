use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::DiskBytes;

/// Where a sandbox's root filesystem comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Root {
    /// The machine's own root filesystem, read-only below a copy-on-write layer; homes and secrets hidden.
    #[default]
    Host,
    /// A directory of the host, read-only below a copy-on-write layer.
    Directory { path: String },
    /// A registry reference, an OCI layout or a `docker save` tar.
    Image { reference: String },
}

/// Limits of one sandbox; absent means none.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    pub memory_bytes: Option<u64>,
    /// Number of processes and threads.
    pub pids: Option<u32>,
    /// CPUs' worth of time, for example `1.5`.
    pub cpus: Option<f64>,
}

/// How much history a sandbox keeps: all limits hold, the oldest checkpoints go first. Absent means no limit. The current
/// checkpoint and its ancestors, and those that have a label or are pinned, stay whatever the limits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Retention {
    /// Only so many, the last ones made.
    pub keep_last: Option<usize>,
    /// Only those that are not older.
    pub keep_age_ms: Option<u64>,
    /// Only as many as take so much on disk together.
    pub keep_bytes: Option<u64>,
    /// Ancestors of the current checkpoint may go too.
    pub ancestors: bool,
}

impl Retention {
    /// Whether nothing is limited.
    pub fn is_unlimited(&self) -> bool {
        self.keep_last.is_none() && self.keep_age_ms.is_none() && self.keep_bytes.is_none()
    }
}

/// A directory of the host made available inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Absolute path on the host.
    pub source: String,
    /// Absolute path inside.
    pub target: String,
    #[serde(default)]
    pub read_only: bool,
}

/// Body of `POST /v1/sandboxes`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct CreateRequest {
    /// `[a-z0-9][a-z0-9_.-]{0,62}`; made up when absent.
    pub name: Option<String>,
    pub root: Root,
    pub limits: Limits,
    pub mounts: Vec<Mount>,
    /// Environment of every command.
    pub env: BTreeMap<String, String>,
    pub retention: Retention,
}

/// Whether a sandbox has a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SandboxStatus {
    Running,
    /// Known from its durable checkpoints only (the daemon was restarted); a rollback brings it back.
    Stopped,
    /// Its processes had to be killed after a failure; a rollback brings it back.
    Failed,
}

/// One sandbox as `ls` and `inspect` show it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SandboxInfo {
    pub id: String,
    pub name: String,
    pub status: SandboxStatus,
    pub root: Root,
    pub limits: Limits,
    pub mounts: Vec<Mount>,
    pub env: BTreeMap<String, String>,
    #[serde(default)]
    pub retention: Retention,
    /// Seconds since the epoch.
    pub created_unix: u64,
    /// Checkpoint the live state descends from.
    pub current: Option<String>,
    pub checkpoints: usize,
    /// Host process id of the sandbox's init.
    pub init_pid: Option<i32>,
    pub execs: Vec<ExecInfo>,
    /// Time the creation took, by phase.
    #[serde(default)]
    pub phases_ms: BTreeMap<String, f64>,
}

/// A command that was started with `exec` and has not ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExecInfo {
    pub id: String,
    /// Process id inside the sandbox.
    pub pid: i32,
    pub argv: Vec<String>,
    pub tty: bool,
}

/// Answer of `GET /v1/sandboxes/{name}/stats`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Stats {
    pub processes: u64,
    pub memory_bytes: Option<u64>,
    pub memory_peak_bytes: Option<u64>,
    pub cpu_usec: Option<u64>,
    /// Bytes of process pages kept for this sandbox's checkpoints.
    pub page_store_bytes: u64,
    pub checkpoints: usize,
    /// Layers below the upper.
    pub depth: usize,
    /// What all checkpoints take together, each byte counted once; absent unless asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskBytes>,
}
