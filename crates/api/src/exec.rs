use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Body of `POST /v1/sandboxes/{name}/exec`. The answer is a stream of [`ExecEvent`]s, one JSON object per line.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ExecRequest {
    pub argv: Vec<String>,
    pub env: BTreeMap<String, String>,
    /// Absolute path inside; the image's working directory or `/` when absent.
    pub workdir: Option<String>,
    /// `name`, `uid`, `name:group` or `uid:gid`; root when absent.
    pub user: Option<String>,
    /// A terminal of this size instead of pipes.
    pub tty: Option<WindowSize>,
    /// Keep standard input open for `POST .../execs/{id}/stdin`; otherwise it is at its end from the start.
    pub stdin: bool,
    /// Standard input given whole (base64); its end follows. Excludes `stdin`.
    pub stdin_data: Option<String>,
    /// Return after the start; the command's output is discarded.
    pub detach: bool,
    /// Kill the command after this time.
    pub timeout_ms: Option<u64>,
}

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    pub rows: u16,
    pub cols: u16,
}

/// Body of `POST .../execs/{id}/signal`.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct SignalRequest {
    pub signal: i32,
}

/// One line of an exec stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum ExecEvent {
    /// First line. `id` names the command in the other calls.
    Started {
        id: String,
        pid: i32,
    },
    /// Bytes (base64) the command wrote; with a terminal all output is `stdout`.
    Stdout {
        data: String,
    },
    Stderr {
        data: String,
    },
    /// The sandbox was rolled back; the command existed at the checkpoint and goes on from there.
    RolledBack {
        checkpoint: String,
    },
    /// Last line: the command ended by itself or by a signal.
    Exited {
        code: Option<i32>,
        signal: Option<i32>,
        timed_out: bool,
    },
    /// Last line: a rollback to a state in which the command did not exist ended it.
    Discarded {
        checkpoint: String,
    },
    /// Last line: the sandbox was removed or failed.
    Lost {
        message: String,
    },
}

impl ExecEvent {
    /// Exit code of the command line for a last event: the command's own, 128 + signal, or one of ours.
    pub fn exit_code(&self) -> Option<i32> {
        match self {
            Self::Exited { timed_out: true, .. } => Some(EXIT_TIMED_OUT),
            Self::Exited { code: Some(code), .. } => Some(*code),
            Self::Exited {
                signal: Some(signal), ..
            } => Some(128 + signal),
            Self::Exited { .. } | Self::Lost { .. } => Some(EXIT_EXEC_FAILED),
            Self::Discarded { .. } => Some(EXIT_DISCARDED),
            _ => None,
        }
    }
}

/// `exec`: the command exceeded `--timeout`.
pub const EXIT_TIMED_OUT: i32 = 124;
/// `exec`: a rollback discarded the command.
pub const EXIT_DISCARDED: i32 = 123;
/// `exec`: DeltaBox itself failed.
pub const EXIT_EXEC_FAILED: i32 = 125;
/// `exec`: the command was found and could not be started.
pub const EXIT_NOT_EXECUTABLE: i32 = 126;
/// `exec`: the command was not found.
pub const EXIT_NOT_FOUND: i32 = 127;
