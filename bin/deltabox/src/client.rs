//! The client half of the HTTP API: requests over the daemon's unix socket, starting the daemon when it is not there.
//!
//! One connection per request: over a unix socket it costs some tens of microseconds, and nothing has to be pooled.
//! Everything runs on one thread; [`Client`] blocks, [`Endpoint`] is the same for code that is asynchronous itself.

mod body;
mod home;
mod start;

use bytes::Bytes;
use deltabox_api::{API_PREFIX, ApiError, ErrorKind};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::runtime::Runtime;

pub use body::{BodyReader, BodyWriter, OutBody, body_channel};
pub use home::Home;
pub use start::is_running;

/// Largest JSON answer that is accepted (a diff with the text of many files is the largest there is).
const ANSWER_BYTES_MAX: usize = 256 << 20;
/// Error bodies are small; anything longer does not come from the daemon.
const ERROR_BYTES_MAX: usize = 1 << 20;

/// What must be escaped in a path segment or a query value: everything but RFC 3986's unreserved characters.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');

/// Escapes `text` for a path segment or a query value.
pub fn escape(text: &str) -> String {
    // A segment of dots only would be taken as "this" or "parent" by URL normalisation.
    if text == "." || text == ".." {
        return text.replace('.', "%2E");
    }
    utf8_percent_encode(text, ESCAPED).to_string()
}

/// The path of a sandbox below the API's prefix, with `rest` (already escaped) behind it.
pub fn sandbox_path(name: &str, rest: &str) -> String {
    format!("/sandboxes/{}{rest}", escape(name))
}

/// Where the daemon listens. Cheap to clone; usable from any task.
#[derive(Clone)]
pub struct Endpoint {
    home: Home,
}

impl Endpoint {
    /// Sends one request, starting the daemon if nothing listens. Any status is a success here.
    pub async fn send(&self, request: Request<OutBody>) -> Result<Response<Incoming>, ApiError> {
        let stream = start::connect(&self.home)?;
        let stream = stream
            .set_nonblocking(true)
            .and_then(|()| tokio::net::UnixStream::from_std(stream))
            .map_err(|error| self.unreachable(&error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.unreachable(&error))?;
        tokio::spawn(connection);
        sender
            .send_request(request)
            .await
            .map_err(|error| self.unreachable(&error))
    }

    /// Like [`Self::send`], and an answer that is no success becomes the [`ApiError`] in it.
    pub async fn expect(&self, request: Request<OutBody>) -> Result<Response<Incoming>, ApiError> {
        let response = self.send(request).await?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(self.error_of(response).await)
    }

    /// The error an answer carries.
    pub async fn error_of(&self, response: Response<Incoming>) -> ApiError {
        let status = response.status();
        let body = Limited::new(response.into_body(), ERROR_BYTES_MAX)
            .collect()
            .await;
        body.ok()
            .and_then(|body| serde_json::from_slice(&body.to_bytes()).ok())
            .unwrap_or_else(|| {
                ApiError::new(
                    ErrorKind::Internal,
                    format!("the daemon answered {status} without saying why"),
                )
                .hint(format!("see {}", self.home.log().display()))
            })
    }

    /// The daemon went away in the middle of something.
    pub fn unreachable(&self, error: &dyn std::error::Error) -> ApiError {
        let cause = std::iter::successors(Some(error), |error| error.source())
            .last()
            .map_or_else(|| error.to_string(), ToString::to_string);
        ApiError::new(
            ErrorKind::Unreachable,
            format!("the connection to the daemon broke: {cause}"),
        )
        .hint(format!("see {}", self.home.log().display()))
    }
}

/// A request with a JSON body.
pub fn json_request(method: Method, path: &str, body: &impl Serialize) -> Result<Request<OutBody>, ApiError> {
    let body = serde_json::to_vec(body)
        .map_err(|error| ApiError::new(ErrorKind::Internal, format!("cannot encode the request: {error}")))?;
    build(
        Request::builder().header(CONTENT_TYPE, "application/json"),
        method,
        path,
        OutBody::full(body),
    )
}

/// A request with a body that is not JSON, or none.
pub fn request(method: Method, path: &str, body: OutBody) -> Result<Request<OutBody>, ApiError> {
    build(Request::builder(), method, path, body)
}

fn build(
    builder: hyper::http::request::Builder,
    method: Method,
    path: &str,
    body: OutBody,
) -> Result<Request<OutBody>, ApiError> {
    builder
        .method(method)
        .uri(format!("{API_PREFIX}{path}"))
        .header(hyper::header::HOST, "deltabox")
        .body(body)
        .map_err(|error| {
            ApiError::new(
                ErrorKind::Usage,
                format!("cannot form a request for '{path}': {error}"),
            )
        })
}

/// A blocking client.
pub struct Client {
    runtime: Runtime,
    endpoint: Endpoint,
}

impl Client {
    /// A client of the daemon of this state directory. Does not connect yet.
    pub fn new(home: Home) -> Result<Self, ApiError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| ApiError::new(ErrorKind::Exhausted, format!("cannot start: {error}")))?;
        Ok(Self {
            runtime,
            endpoint: Endpoint { home },
        })
    }

    /// A client of the daemon of `DELTABOX_HOME`.
    pub fn from_env() -> Result<Self, ApiError> {
        Self::new(Home::from_env()?)
    }

    pub fn home(&self) -> &Home {
        &self.endpoint.home
    }

    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Runs asynchronous code on the client's own thread.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    /// Asks for something. Asked once more if the connection breaks, because a daemon that is just dying may still
    /// take it; what changes something is not repeated, since it may have been done.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        let ask = || self.answer(request(Method::GET, path, OutBody::empty())?);
        ask().or_else(|error: ApiError| {
            if error.kind == ErrorKind::Unreachable {
                ask()
            } else {
                Err(error)
            }
        })
    }

    pub fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ApiError> {
        self.answer(json_request(Method::POST, path, body)?)
    }

    /// A request whose answer has no content of interest.
    pub fn perform(&self, request: Request<OutBody>) -> Result<(), ApiError> {
        self.block_on(async {
            let response = self.endpoint.expect(request).await?;
            // Read to the end: the daemon may still be working while it sends.
            let body = response.into_body().collect().await;
            body.map(drop).map_err(|error| self.endpoint.unreachable(&error))
        })
    }

    /// A request whose answer is a stream of bytes.
    pub fn download(&self, path: &str) -> Result<BodyReader<'_>, ApiError> {
        let request = request(Method::GET, path, OutBody::empty())?;
        let response = self.block_on(self.endpoint.expect(request))?;
        Ok(BodyReader::new(&self.runtime, response.into_body()))
    }

    fn answer<T: DeserializeOwned>(&self, request: Request<OutBody>) -> Result<T, ApiError> {
        let body: Bytes = self.block_on(async {
            let response = self.endpoint.expect(request).await?;
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
                .collect()
                .await;
            body.map(http_body_util::Collected::to_bytes)
                .map_err(|error| self.endpoint.unreachable(error.as_ref()))
        })?;
        serde_json::from_slice(&body).map_err(|error| {
            ApiError::new(
                ErrorKind::Internal,
                format!("the daemon's answer is not understood: {error}"),
            )
            .hint("is the daemon of another version? end it with 'deltabox stop'")
        })
    }
}
