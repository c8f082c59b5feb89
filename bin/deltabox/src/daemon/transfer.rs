//! Files in and out of a sandbox, spooled through the state directory.
//!
//! Packing and unpacking run on the sandbox's thread, so that no checkpoint or rollback comes between; the client's
//! speed does not matter to it because the stream is spooled.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::Response;
use deltabox_api::{ApiError, CommitRequest, CommitResult, ErrorKind, ExportFormat, RestoreRequest};
use deltabox_state::{Error, Handle};
use futures_util::StreamExt;
use serde::Deserialize;
use tokio::io::AsyncReadExt;

use super::routes::JsonBody;
use super::server::Daemon;
use super::wire::{Answer, Failure, answer, blocking, on_sandbox};

/// Bytes of a spooled file sent at once.
const CHUNK_BYTES: usize = 256 << 10;

#[derive(Deserialize)]
pub struct FilesQuery {
    path: String,
}

fn spool(daemon: &Daemon) -> Result<File, Failure> {
    tempfile::tempfile_in(&daemon.home).map_err(|error| Error::io("cannot spool the files", &error).into())
}

/// `GET .../files?path=`
pub async fn get_files(
    State(daemon): State<Arc<Daemon>>,
    Path(name): Path<String>,
    Query(query): Query<FilesQuery>,
) -> Result<Response, Failure> {
    let handle = daemon.handle(&name)?;
    let file = spool(&daemon)?;
    let output = file
        .try_clone()
        .map_err(|error| Failure::internal("cannot spool the files", error))?;
    run(&handle, "get", query.path, Stdio::null(), output.into()).await?;
    send_file(file)
}

/// `PUT .../files?path=`
pub async fn put_files(
    State(daemon): State<Arc<Daemon>>,
    Path(name): Path<String>,
    Query(query): Query<FilesQuery>,
    body: Body,
) -> Result<StatusCode, Failure> {
    let handle = daemon.handle(&name)?;
    let mut file = spool(&daemon)?;
    let mut chunks = body.into_data_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| Failure::internal("the request's body broke off", error))?;
        file.write_all(&chunk)
            .map_err(|error| Failure::from(Error::io("cannot spool the files", &error)))?;
    }
    file.seek(SeekFrom::Start(0))
        .map_err(|error| Failure::internal("cannot spool the files", error))?;
    run(&handle, "put", query.path, file.into(), Stdio::null()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `POST .../restore`: puts a path back as it was at a checkpoint; what is there now is replaced.
pub async fn restore(
    State(daemon): State<Arc<Daemon>>,
    Path(name): Path<String>,
    JsonBody(request): JsonBody<RestoreRequest>,
) -> Result<StatusCode, Failure> {
    let handle = daemon.handle(&name)?;
    let mut file = spool(&daemon)?;
    let out = file
        .try_clone()
        .map_err(|error| Failure::internal("cannot spool the files", error))?;
    let path = request.path.clone();
    on_sandbox(&handle, move |sandbox| {
        sandbox.pack_path(&request.path, &request.from, out)
    })
    .await?;
    file.seek(SeekFrom::Start(0))
        .map_err(|error| Failure::internal("cannot spool the files", error))?;
    run(&handle, "restore", path, file.into(), Stdio::null()).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
pub struct ExportQuery {
    checkpoint: String,
    #[serde(default)]
    format: ExportFormat,
}

/// `GET .../export?checkpoint=&format=`: the tar is made while it is sent.
pub async fn export(
    State(daemon): State<Arc<Daemon>>,
    Path(name): Path<String>,
    Query(query): Query<ExportQuery>,
) -> Result<Response, Failure> {
    let handle = daemon.handle(&name)?;
    let export = on_sandbox(&handle, move |sandbox| sandbox.export(&query.checkpoint)).await?;
    let (send, receive) = tokio::sync::mpsc::channel::<Result<Vec<u8>, std::io::Error>>(4);
    tokio::task::spawn_blocking(move || {
        let mut out = std::io::BufWriter::with_capacity(CHUNK_BYTES, ChannelWriter(send.clone()));
        let written = export
            .write(query.format, &mut out)
            .map_err(|error| error.to_string());
        if let Err(error) = written.and_then(|()| out.flush().map_err(|error| error.to_string())) {
            // Breaks the answer off, so that the client does not take half a tar for a whole one.
            let _ = send.blocking_send(Err(std::io::Error::other(error)));
        }
    });
    let chunks =
        futures_util::stream::unfold(
            receive,
            |mut r| async move { r.recv().await.map(|chunk| (chunk, r)) },
        );
    tar_answer(Body::from_stream(chunks))
}

/// Hands what is written to an answer that is being sent.
struct ChannelWriter(tokio::sync::mpsc::Sender<Result<Vec<u8>, std::io::Error>>);

impl Write for ChannelWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let sent = self.0.blocking_send(Ok(bytes.to_vec()));
        sent.map_err(|_| std::io::Error::from(std::io::ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// `POST .../commit`
pub async fn commit(
    State(daemon): State<Arc<Daemon>>,
    Path(name): Path<String>,
    JsonBody(request): JsonBody<CommitRequest>,
) -> Answer<CommitResult> {
    let handle = daemon.handle(&name)?;
    let checkpoint = request.checkpoint.clone();
    let export = on_sandbox(&handle, move |sandbox| sandbox.export(&checkpoint)).await?;
    answer(blocking(move || export.commit(&request)).await)
}

/// Has a helper process work inside the sandbox while nothing else happens to it.
async fn run(
    handle: &Handle,
    what: &'static str,
    path: String,
    input: Stdio,
    output: Stdio,
) -> Result<(), Failure> {
    if !path.starts_with('/') {
        return Err(Failure::usage(format!("{path} is not an absolute path")));
    }
    on_sandbox(handle, move |sandbox| {
        let init = sandbox.init_pid()?.to_string();
        let helper = Command::new("/proc/self/exe")
            .args(["__files", what, &init, &path])
            .env_clear()
            .stdin(input)
            .stdout(output)
            .stderr(Stdio::piped())
            .spawn()
            .and_then(std::process::Child::wait_with_output);
        let done = helper.map_err(|error| Error::io("cannot run a helper process", &error))?;
        if done.status.success() {
            return Ok(());
        }
        let said = serde_json::from_slice::<ApiError>(&done.stderr);
        Err(said
            .unwrap_or_else(|_| {
                ApiError::new(
                    ErrorKind::Internal,
                    format!("a helper process ended with {}", done.status),
                )
            })
            .into())
    })
    .await
}

/// Answers with a spooled tar.
pub fn send_file(mut file: File) -> Result<Response, Failure> {
    file.seek(SeekFrom::Start(0))
        .map_err(|error| Failure::internal("cannot read the spooled files", error))?;
    let file = tokio::fs::File::from_std(file);
    let chunks = futures_util::stream::unfold(file, |mut file| async move {
        let mut buffer = vec![0; CHUNK_BYTES];
        match file.read(&mut buffer).await {
            Ok(0) => None,
            Ok(n) => {
                buffer.truncate(n);
                Some((Ok(buffer), file))
            }
            Err(error) => Some((Err(error), file)),
        }
    });
    tar_answer(Body::from_stream(chunks))
}

fn tar_answer(body: Body) -> Result<Response, Failure> {
    Response::builder()
        .header(CONTENT_TYPE, "application/x-tar")
        .body(body)
        .map_err(|error| Failure::internal("cannot answer", error))
}
