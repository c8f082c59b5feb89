//! One handler per endpoint; what they do is in the engine.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use axum::{Json, Router};
use deltabox_api::*;
use deltabox_state::{DurableReply, Handle, Sandbox};
use serde::Deserialize;

use super::exec;
use super::server::Daemon;
use super::transfer;
use super::wire::{Answer, Failure, answer, blocking, on_sandbox};

type Shared = State<Arc<Daemon>>;

/// All endpoints below `/v1`.
pub fn router(daemon: Arc<Daemon>) -> Router {
    let sandbox = Router::new()
        .route("/", get(inspect).delete(remove))
        .route("/stats", get(stats))
        .route("/exec", post(start_exec))
        .route("/execs/{exec}/stdin", post(stdin))
        .route("/execs/{exec}/resize", post(resize))
        .route("/execs/{exec}/signal", post(signal))
        .route("/checkpoints", get(log).post(checkpoint))
        .route("/checkpoints/{checkpoint}", delete(remove_checkpoint))
        .route("/checkpoints/{checkpoint}/pin", put(pin).delete(unpin))
        .route("/retention", put(retention))
        .route("/rollback", post(rollback))
        .route("/fork", post(fork))
        .route("/pause", post(pause))
        .route("/resume", post(resume))
        .route("/diff", get(diff))
        .route("/restore", post(transfer::restore))
        .route("/export", get(transfer::export))
        .route("/commit", post(transfer::commit))
        .route("/files", get(transfer::get_files).put(transfer::put_files));
    let api = Router::new()
        .route("/health", get(health))
        .route("/shutdown", post(shutdown))
        .route("/fsck", post(fsck))
        .route("/gc", post(gc))
        .route("/sandboxes", get(list).post(create))
        .nest("/sandboxes/{name}", sandbox);
    Router::new()
        .nest(API_PREFIX, api)
        .fallback(unknown)
        .with_state(daemon)
}

async fn unknown(request: axum::extract::Request) -> Failure {
    ApiError::new(
        ErrorKind::NotFound,
        format!("no endpoint {} {}", request.method(), request.uri().path()),
    )
    .hint("docs/api.md lists the endpoints")
    .into()
}

impl Daemon {
    pub fn handle(&self, name: &str) -> Result<Handle, Failure> {
        self.engine.get(name).map_err(Failure::from)
    }
}

async fn health(State(daemon): Shared) -> Answer<Health> {
    answer(blocking(move || daemon.engine.health()).await)
}

async fn shutdown(State(daemon): Shared) -> StatusCode {
    daemon.stop.notify_one();
    StatusCode::ACCEPTED
}

async fn list(State(daemon): Shared) -> Answer<Vec<SandboxInfo>> {
    answer(blocking(move || daemon.engine.list()).await)
}

async fn create(State(daemon): Shared, JsonBody(request): JsonBody<CreateRequest>) -> Answer<SandboxInfo> {
    answer(blocking(move || daemon.engine.create(request)).await)
}

async fn inspect(State(daemon): Shared, Path(name): Path<String>) -> Answer<SandboxInfo> {
    let handle = daemon.handle(&name)?;
    answer(on_sandbox(&handle, |sandbox| Ok(sandbox.info())).await)
}

#[derive(Deserialize)]
struct RemoveQuery {
    #[serde(default)]
    force: bool,
}

async fn remove(
    State(daemon): Shared,
    Path(name): Path<String>,
    Query(query): Query<RemoveQuery>,
) -> Answer<()> {
    answer(blocking(move || daemon.engine.remove(&name, query.force)).await)
}

#[derive(Deserialize)]
struct DiskQuery {
    #[serde(default)]
    disk: bool,
}

async fn stats(
    State(daemon): Shared,
    Path(name): Path<String>,
    Query(query): Query<DiskQuery>,
) -> Answer<Stats> {
    answer(blocking(move || daemon.engine.stats(&name, query.disk)).await)
}

async fn start_exec(
    State(daemon): Shared,
    Path(name): Path<String>,
    JsonBody(request): JsonBody<ExecRequest>,
) -> Result<Response, Failure> {
    let handle = daemon.handle(&name)?;
    exec::exec(daemon.commands.clone(), handle, request).await
}

#[derive(Deserialize)]
struct StdinQuery {
    #[serde(default)]
    keep: bool,
}

async fn stdin(
    State(daemon): Shared,
    Path((name, id)): Path<(String, String)>,
    Query(query): Query<StdinQuery>,
    body: Body,
) -> Result<StatusCode, Failure> {
    let handle = daemon.handle(&name)?;
    exec::stdin(&daemon.commands, &handle, &id, body, query.keep).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn resize(
    State(daemon): Shared,
    Path((name, id)): Path<(String, String)>,
    JsonBody(size): JsonBody<WindowSize>,
) -> Result<StatusCode, Failure> {
    let handle = daemon.handle(&name)?;
    exec::resize(&daemon.commands, &handle, &id, size)?;
    Ok(StatusCode::NO_CONTENT)
}

async fn signal(
    State(daemon): Shared,
    Path((name, id)): Path<(String, String)>,
    JsonBody(request): JsonBody<SignalRequest>,
) -> Result<StatusCode, Failure> {
    let handle = daemon.handle(&name)?;
    on_sandbox(&handle, move |sandbox| sandbox.signal_exec(&id, request.signal)).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn log(State(daemon): Shared, Path(name): Path<String>, Query(query): Query<DiskQuery>) -> Answer<Log> {
    answer(blocking(move || daemon.engine.log(&name, query.disk)).await)
}

async fn checkpoint(
    State(daemon): Shared,
    Path(name): Path<String>,
    JsonBody(request): JsonBody<CheckpointRequest>,
) -> Answer<CheckpointResult> {
    let handle = daemon.handle(&name)?;
    let wait = request.wait;
    let mut result = on_sandbox(&handle, move |sandbox| sandbox.checkpoint(&request)).await?;
    if wait == Wait::Durable {
        wait_until_durable(&handle, &mut result).await?;
    }
    Ok(Json(result))
}

async fn wait_until_durable(handle: &Handle, made: &mut CheckpointResult) -> Result<(), Failure> {
    let id = made.id.clone();
    durably(handle, move |sandbox, done| {
        sandbox.when_durable(&id, done);
        Ok(())
    })
    .await?;
    made.durable = true;
    Ok(())
}

/// Runs `job` on the sandbox's thread and waits until the reply it is given was told that all is on disk.
async fn durably(
    handle: &Handle,
    job: impl FnOnce(&mut Sandbox, DurableReply) -> deltabox_state::Result<()> + Send + 'static,
) -> Result<(), Failure> {
    let (send, receive) = tokio::sync::oneshot::channel();
    on_sandbox(handle, move |sandbox| {
        job(sandbox, Box::new(move |done| drop(send.send(done))))
    })
    .await?;
    let told = receive.await;
    told.map_err(|_| Failure::internal("cannot wait for the disk", "the sandbox was removed"))??;
    Ok(())
}

async fn remove_checkpoint(
    State(daemon): Shared,
    Path((name, checkpoint)): Path<(String, String)>,
) -> Answer<()> {
    let handle = daemon.handle(&name)?;
    answer(
        durably(&handle, move |sandbox, done| {
            sandbox.remove_checkpoint(&checkpoint, done)
        })
        .await,
    )
}

async fn pin(State(daemon): Shared, Path(path): Path<(String, String)>) -> Answer<()> {
    set_pin(&daemon, path, true).await
}

async fn unpin(State(daemon): Shared, Path(path): Path<(String, String)>) -> Answer<()> {
    set_pin(&daemon, path, false).await
}

async fn set_pin(daemon: &Daemon, (name, checkpoint): (String, String), pinned: bool) -> Answer<()> {
    let handle = daemon.handle(&name)?;
    answer(
        durably(&handle, move |sandbox, done| {
            sandbox.pin(&checkpoint, pinned, done)
        })
        .await,
    )
}

async fn retention(
    State(daemon): Shared,
    Path(name): Path<String>,
    JsonBody(retention): JsonBody<Retention>,
) -> Answer<()> {
    let handle = daemon.handle(&name)?;
    let set = durably(&handle, move |sandbox, done| {
        sandbox.set_retention(retention, done);
        Ok(())
    });
    answer(set.await)
}

async fn gc(State(daemon): Shared, JsonBody(request): JsonBody<GcRequest>) -> Answer<GcResult> {
    answer(blocking(move || daemon.engine.gc(request.sandbox.as_deref())).await)
}

async fn pause(State(daemon): Shared, Path(name): Path<String>) -> Answer<CheckpointResult> {
    let handle = daemon.handle(&name)?;
    // In a task of its own: a caller who hangs up must not leave the sandbox frozen.
    let done = tokio::spawn(pause_sandbox(handle));
    done.await
        .unwrap_or_else(|error| Err(Failure::internal("a worker failed", error)))
        .map(Json)
}

async fn pause_sandbox(handle: Handle) -> Result<CheckpointResult, Failure> {
    let mut made = on_sandbox(&handle, |sandbox| sandbox.begin_pause()).await?;
    let durable = wait_until_durable(&handle, &mut made).await;
    let id = made.id.clone();
    on_sandbox(&handle, move |sandbox| match durable {
        Ok(()) => sandbox
            .finish_pause(&id)
            .inspect_err(|_| sandbox.give_up_pause())
            .map(Ok),
        Err(failure) => {
            sandbox.give_up_pause();
            Ok(Err(failure))
        }
    })
    .await??;
    Ok(made)
}

async fn resume(
    State(daemon): Shared,
    Path(name): Path<String>,
    JsonBody(request): JsonBody<ResumeRequest>,
) -> Answer<RollbackResult> {
    let handle = daemon.handle(&name)?;
    answer(on_sandbox(&handle, move |sandbox| sandbox.resume(request.to.as_deref())).await)
}

async fn fsck(State(daemon): Shared) -> Answer<FsckResult> {
    answer(blocking(move || daemon.engine.fsck()).await)
}

async fn rollback(
    State(daemon): Shared,
    Path(name): Path<String>,
    JsonBody(request): JsonBody<RollbackRequest>,
) -> Answer<RollbackResult> {
    let handle = daemon.handle(&name)?;
    answer(on_sandbox(&handle, move |sandbox| sandbox.rollback(&request.to)).await)
}

async fn fork(
    State(daemon): Shared,
    Path(name): Path<String>,
    JsonBody(request): JsonBody<ForkRequest>,
) -> Answer<ForkResult> {
    answer(blocking(move || daemon.engine.fork(&name, request)).await)
}

#[derive(Deserialize)]
struct DiffQuery {
    from: Option<String>,
    to: Option<String>,
    #[serde(default)]
    text: bool,
    path: Option<String>,
}

async fn diff(
    State(daemon): Shared,
    Path(name): Path<String>,
    Query(query): Query<DiffQuery>,
) -> Answer<Diff> {
    let handle = daemon.handle(&name)?;
    let job = move |sandbox: &mut Sandbox| {
        sandbox.diff(
            query.from.as_deref(),
            query.to.as_deref(),
            query.text,
            query.path.as_deref(),
        )
    };
    answer(on_sandbox(&handle, job).await)
}

/// A JSON body whose errors are [`ApiError`]s like all others.
pub struct JsonBody<T>(pub T);

impl<T: serde::de::DeserializeOwned, S: Send + Sync> axum::extract::FromRequest<S> for JsonBody<T> {
    type Rejection = Response;

    async fn from_request(request: axum::extract::Request, state: &S) -> Result<Self, Response> {
        let bytes = axum::body::Bytes::from_request(request, state)
            .await
            .map_err(IntoResponse::into_response)?;
        let bytes: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        serde_json::from_slice(bytes).map(Self).map_err(|error| {
            Failure::usage(format!(
                "the request's body is not what this endpoint takes: {error}"
            ))
            .into_response()
        })
    }
}
