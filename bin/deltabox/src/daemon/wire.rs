//! Answers and errors on the wire, and the bridge from async handlers to a sandbox's thread.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use deltabox_api::{ApiError, ErrorKind};
use deltabox_state::{Handle, Sandbox};
use serde::Serialize;

/// An [`ApiError`] as an HTTP answer.
pub struct Failure {
    pub error: ApiError,
    /// `exec` only: exit code for a command that could not be started (126, 127).
    pub exit_code: Option<i32>,
}

pub type Answer<T> = Result<Json<T>, Failure>;

impl From<deltabox_state::Error> for Failure {
    fn from(error: deltabox_state::Error) -> Self {
        Self {
            exit_code: error.exec_exit_code(),
            error: error.into_api(),
        }
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self {
            error,
            exit_code: None,
        }
    }
}

impl Failure {
    pub fn usage(message: impl Into<String>) -> Self {
        ApiError::new(ErrorKind::Usage, message).into()
    }

    pub fn internal(what: &str, cause: impl std::fmt::Display) -> Self {
        ApiError::new(ErrorKind::Internal, format!("{what}: {cause}")).into()
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.error.kind.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(self.error)).into_response();
        if let Some(code) = self.exit_code {
            response.headers_mut().insert("x-deltabox-exit-code", code.into());
        }
        response
    }
}

/// Runs `job` on the sandbox's own thread and waits for its result without blocking the runtime.
pub async fn on_sandbox<T: Send + 'static>(
    handle: &Handle,
    job: impl FnOnce(&mut Sandbox) -> deltabox_state::Result<T> + Send + 'static,
) -> Result<T, Failure> {
    let (send, receive) = tokio::sync::oneshot::channel();
    handle.submit(move |sandbox| drop(send.send(job(sandbox))));
    match receive.await {
        Ok(result) => result.map_err(Failure::from),
        Err(_) => Err(ApiError::new(ErrorKind::Conflict, "the sandbox was removed meanwhile").into()),
    }
}

/// Runs blocking engine work that belongs to no sandbox's thread.
pub async fn blocking<T: Send + 'static>(
    job: impl FnOnce() -> deltabox_state::Result<T> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(job).await {
        Ok(result) => result.map_err(Failure::from),
        Err(error) => Err(Failure::internal("a worker failed", error)),
    }
}

pub fn answer<T: Serialize>(result: Result<T, Failure>) -> Answer<T> {
    result.map(Json)
}
