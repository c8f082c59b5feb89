use serde::{Deserialize, Serialize};

/// The kinds of failure a caller can tell apart; each has one HTTP status and one exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// Anything that is not the caller's fault and has no kind of its own.
    Internal,
    /// The request is malformed or an argument is out of range.
    Usage,
    /// A sandbox, checkpoint, path or command of that name does not exist.
    NotFound,
    /// The name is taken, or the sandbox is in a state in which this cannot be done.
    Conflict,
    /// The state cannot be carried; nothing was changed and the sandbox runs on.
    Refused,
    /// The machine lacks a feature or a privilege.
    Unsupported,
    /// Disk, memory or a limit is exhausted.
    Exhausted,
    /// The daemon cannot be reached or started.
    Unreachable,
}

impl ErrorKind {
    /// HTTP status of an answer with this error.
    pub fn http_status(self) -> u16 {
        match self {
            Self::Internal => 500,
            Self::Usage => 400,
            Self::NotFound => 404,
            Self::Conflict => 409,
            Self::Refused => 422,
            Self::Unsupported => 501,
            Self::Exhausted => 507,
            Self::Unreachable => 503,
        }
    }

    /// Exit code of the command line for this error (documented in `docs/cli.md`).
    pub fn exit_code(self) -> i32 {
        match self {
            Self::Internal => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Conflict => 4,
            Self::Refused => 5,
            Self::Unsupported => 6,
            Self::Exhausted => 7,
            Self::Unreachable => 8,
        }
    }
}

/// Body of every answer that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    pub kind: ErrorKind,
    /// What happened and why: one line, lower case.
    pub message: String,
    /// What the caller can do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// For [`ErrorKind::Refused`]: each thing that cannot be carried.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refusals: Vec<Refusal>,
}

impl ApiError {
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            hint: None,
            refusals: Vec::new(),
        }
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// One thing in the sandbox that a checkpoint cannot carry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Process id inside the sandbox; absent if no process is concerned.
    pub pid: Option<i32>,
    pub process: String,
    /// What it is: a descriptor, a mapping, a state.
    pub what: String,
    pub why: String,
    pub remedy: String,
}
