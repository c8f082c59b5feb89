//! How a command ends, decided once at the edge.

use std::io::Write;

use deltabox_api::{ApiError, ErrorKind};

use super::output::printable;

/// The exit code of a command that did its work, or why it did not.
pub type Outcome = Result<i32, Failure>;

/// Exit code when the reader of our output went away: what the shell reports for a death by SIGPIPE.
const EXIT_OUTPUT_CLOSED: i32 = 128 + 13;

/// Why a command ends early.
#[derive(Debug)]
pub enum Failure {
    /// Reported, with the exit code of its kind or the one given.
    Error { error: ApiError, exit_code: Option<i32> },
    /// Reported already; only the exit code is left.
    Reported(i32),
    /// Nobody reads our output any more. Not worth a word.
    OutputClosed,
}

impl Failure {
    /// The same failure with this exit code.
    pub fn with_exit_code(self, code: i32) -> Self {
        match self {
            Self::Error { error, .. } => Self::Error {
                error,
                exit_code: Some(code),
            },
            other => other,
        }
    }

    /// Says on standard error what happened, why, and what to do; returns the exit code.
    pub fn report(&self) -> i32 {
        match self {
            Self::Error { error, exit_code } => {
                // Nothing is left to do when standard error is gone too.
                let _ = std::io::stderr().write_all(describe(error).as_bytes());
                exit_code.unwrap_or(error.kind.exit_code())
            }
            Self::Reported(code) => *code,
            Self::OutputClosed => EXIT_OUTPUT_CLOSED,
        }
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self::Error {
            error,
            exit_code: None,
        }
    }
}

/// A wrong argument.
pub fn usage(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorKind::Usage, message)
}

fn describe(error: &ApiError) -> String {
    let mut text = format!("error: {}\n", printable(&error.message));
    for refusal in &error.refusals {
        let pid = refusal
            .pid
            .map(|pid| format!("process {pid} "))
            .unwrap_or_default();
        let line = format!(
            "  {pid}({}): {}: {}; {}",
            refusal.process, refusal.what, refusal.why, refusal.remedy
        );
        text += &printable(&line);
        text.push('\n');
    }
    if let Some(hint) = &error.hint {
        text += &format!("hint: {}\n", printable(hint));
    }
    text
}

#[cfg(test)]
mod tests {
    use deltabox_api::Refusal;

    use super::*;

    #[test]
    fn a_refusal_names_process_reason_and_remedy() {
        let mut error = ApiError::new(ErrorKind::Refused, "the state cannot be carried").hint("end it");
        error.refusals.push(Refusal {
            pid: Some(12),
            process: "server".into(),
            what: "descriptor 5 (io_uring)".into(),
            why: "the kernel has no way to read it".into(),
            remedy: "disable io_uring".into(),
        });
        assert_eq!(
            describe(&error),
            "error: the state cannot be carried\n  process 12 (server): descriptor 5 (io_uring): the kernel has no \
             way to read it; disable io_uring\nhint: end it\n"
        );
        assert_eq!(Failure::from(error.clone()).report(), 5);
        assert_eq!(Failure::from(error).with_exit_code(125).report(), 125);
    }
}
