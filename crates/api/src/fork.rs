use serde::{Deserialize, Serialize};

use crate::{ApiError, SandboxInfo};

/// Body of `POST /v1/sandboxes/{name}/fork`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct ForkRequest {
    /// The checkpoint to make children from; absent: the live state, of which a checkpoint is made.
    pub from: Option<String>,
    /// How many children.
    pub count: usize,
    /// The child's name; with several, each is `NAME-K`, K counting from 1. Made up when absent.
    pub name: Option<String>,
}

impl Default for ForkRequest {
    fn default() -> Self {
        Self {
            from: None,
            count: 1,
            name: None,
        }
    }
}

/// What became of a fork.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ForkResult {
    /// The checkpoint the children were made from, in the source's tree and, as the root, in theirs.
    pub checkpoint: String,
    /// How long the source stood still; 0 when it was made from a checkpoint.
    pub stopped_ms: f64,
    pub total_ms: f64,
    /// One entry per child asked for, in the order of their numbers.
    pub children: Vec<Forked>,
}

/// One child: the sandbox, or why there is none.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Forked {
    Failed { name: String, error: ApiError },
    Made(Box<ForkedSandbox>),
}

/// A child that was made.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ForkedSandbox {
    #[serde(flatten)]
    pub sandbox: SandboxInfo,
    /// From the child's turn until its processes ran.
    pub total_ms: f64,
}
