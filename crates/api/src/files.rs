use serde::{Deserialize, Serialize};

/// What happened to a path between two states.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    Added,
    Changed,
    Deleted,
}

/// One changed path.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Change {
    /// Absolute path inside the sandbox.
    pub path: String,
    pub kind: ChangeKind,
    /// `file`, `directory`, `symlink`, `fifo`, `socket`, `device`.
    pub file_type: String,
    pub size_before_bytes: Option<u64>,
    pub size_after_bytes: Option<u64>,
    /// Unified diff, when asked for and both sides are text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

/// Answer of `GET /v1/sandboxes/{name}/diff?from=&to=&text=`. Absent `from`: the current checkpoint (or the base);
/// absent `to`: the live state.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Diff {
    pub from: String,
    pub to: String,
    pub changes: Vec<Change>,
}

/// Body of `POST /v1/sandboxes/{name}/restore`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RestoreRequest {
    pub path: String,
    pub from: String,
}

/// Format of `GET /v1/sandboxes/{name}/export?checkpoint=&format=`; the body is a tar stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExportFormat {
    /// OCI image layout with the changes since the base as one layer.
    #[default]
    Oci,
    /// Plain tar of the whole tree.
    Rootfs,
}

/// Body of `POST /v1/sandboxes/{name}/commit`: apply a checkpoint's changes below `from_path` to a directory of the host.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CommitRequest {
    pub checkpoint: String,
    /// Directory inside whose changes are taken.
    pub from_path: String,
    /// Directory of the host they are applied to.
    pub target: String,
    /// Only say what would be done.
    #[serde(default)]
    pub preview: bool,
}

/// Answer of a commit: what was (or would be) done, in order.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CommitResult {
    pub applied: bool,
    pub changes: Vec<Change>,
}
