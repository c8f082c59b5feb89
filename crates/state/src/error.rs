use deltabox_api::{ApiError, ErrorKind, Refusal};

pub type Result<T> = std::result::Result<T, Error>;

/// A failure as the caller gets it: the kind decides status and exit code, the text says what, why and what to do.
///
/// The engine's crates below have narrow errors of their own; here they meet the caller, so this is the API's shape.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}", .api.message)]
pub struct Error {
    api: ApiError,
    exec_exit_code: Option<i32>,
}

impl Error {
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            api: ApiError::new(kind, message),
            exec_exit_code: None,
        }
    }

    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self {
            api: self.api.hint(hint),
            ..self
        }
    }

    pub fn internal(what: &str, cause: impl std::fmt::Display) -> Self {
        Self::new(ErrorKind::Internal, format!("{what}: {cause}"))
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, message)
    }

    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Usage, message)
    }

    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Conflict, message)
    }

    pub fn refused(message: impl Into<String>, refusals: Vec<Refusal>) -> Self {
        let mut error = Self::new(ErrorKind::Refused, message);
        error.api.refusals = refusals;
        error
    }

    /// An I/O failure, with a full disk and a missing privilege told apart since the caller can act on them.
    pub fn io(what: &str, error: &std::io::Error) -> Self {
        by_errno(format!("{what}: {error}"), error.raw_os_error())
    }

    /// For `exec`: the conventional exit code of a command that could not be started.
    pub fn exec_exit_code(&self) -> Option<i32> {
        self.exec_exit_code
    }

    /// Whether it says that a sandbox is no more.
    pub(crate) fn is_gone(&self) -> bool {
        self.api.kind == ErrorKind::Conflict
    }

    pub fn into_api(self) -> ApiError {
        self.api
    }
}

fn by_errno(text: String, errno: Option<i32>) -> Error {
    match errno.map(rustix::io::Errno::from_raw_os_error) {
        Some(rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT) => Error::new(ErrorKind::Exhausted, text)
            .hint("remove sandboxes or checkpoints, or give the state directory more room"),
        Some(rustix::io::Errno::NOMEM | rustix::io::Errno::MFILE | rustix::io::Errno::NFILE) => {
            Error::new(ErrorKind::Exhausted, text).hint("remove sandboxes, or raise the machine's limits")
        }
        Some(rustix::io::Errno::PERM | rustix::io::Errno::ACCESS) => {
            Error::new(ErrorKind::Unsupported, text).hint("`deltabox doctor` tells what this machine lacks")
        }
        _ => Error::new(ErrorKind::Internal, text),
    }
}

impl From<deltabox_layers::Error> for Error {
    fn from(error: deltabox_layers::Error) -> Self {
        use deltabox_layers::Error as E;
        let text = error.to_string();
        match error {
            E::StoreBusy(_) => Self::new(ErrorKind::Conflict, text),
            E::NoSnapshots(_) => Self::new(ErrorKind::Refused, text),
            E::BaseOnStore(_) | E::NotMappable { .. } | E::CannotMake { .. } => {
                Self::new(ErrorKind::Unsupported, text)
            }
            E::BadPath { .. } => Self::usage(text),
            E::NotThere { .. } | E::Missing(_) => Self::not_found(text),
            _ => by_errno(text, error.os_error()),
        }
    }
}

impl From<deltabox_isolation::Error> for Error {
    fn from(error: deltabox_isolation::Error) -> Self {
        use deltabox_isolation::Error as E;
        let text = error.to_string();
        let with_code = |error: Self, code| Self {
            exec_exit_code: Some(code),
            ..error
        };
        match &error {
            E::ProgramNotFound { .. } => with_code(Self::not_found(text), deltabox_api::EXIT_NOT_FOUND),
            E::ProgramNotRunnable { .. } | E::WorkingDirectory { .. } => {
                with_code(Self::usage(text), deltabox_api::EXIT_NOT_EXECUTABLE)
            }
            E::ProcessLimit => Self::new(ErrorKind::Exhausted, text),
            E::Invalid(_) | E::User(_) => Self::usage(text),
            E::NoController { .. } => Self::new(ErrorKind::Unsupported, text),
            E::System { source, .. } => by_errno(text, source.raw_os_error()),
            E::Inside(failure) => by_errno(text, Some(failure.errno)),
            _ => Self::new(ErrorKind::Internal, text),
        }
    }
}

impl From<deltabox_image::Error> for Error {
    fn from(error: deltabox_image::Error) -> Self {
        Self::usage(error.to_string())
    }
}

impl From<ApiError> for Error {
    fn from(api: ApiError) -> Self {
        Self {
            api,
            exec_exit_code: None,
        }
    }
}
