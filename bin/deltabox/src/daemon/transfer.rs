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
use deltabox_api::{ApiError, ErrorKind};
use deltabox_state::{Error, Handle};
use futures_util::StreamExt;
use serde::Deserialize;
use tokio::io::AsyncReadExt;

use super::server::Daemon;
use super::wire::{Failure, on_sandbox};

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
    let output = file.try_clone().map_err(|error| Failure::internal("cannot spool the files", error))?;
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
        file.write_all(&chunk).map_err(|error| Failure::from(Error::io("cannot spool the files", &error)))?;
    }
    file.seek(SeekFrom::Start(0)).map_err(|error| Failure::internal("cannot spool the files", error))?;
    run(&handle, "put", query.path, file.into(), Stdio::null()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Has a helper process work inside the sandbox while nothing else happens to it.
async fn run(handle: &Handle, what: &'static str, path: String, input: Stdio, output: Stdio) -> Result<(), Failure> {
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
        Err(said.unwrap_or_else(|_| ApiError::new(ErrorKind::Internal, format!("a helper process ended with {}", done.status))).into())
    })
    .await
}

/// Answers with a spooled tar.
pub fn send_file(mut file: File) -> Result<Response, Failure> {
    file.seek(SeekFrom::Start(0)).map_err(|error| Failure::internal("cannot read the spooled files", error))?;
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
    Response::builder()
        .header(CONTENT_TYPE, "application/x-tar")
        .body(Body::from_stream(chunks))
        .map_err(|error| Failure::internal("cannot answer", error))
}
