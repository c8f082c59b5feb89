//! A caller of the daemon: one kept connection, blocking calls, so that what is timed is what a caller waits for.

use std::path::Path;

use base64::Engine as _;
use deltabox_api::*;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::runtime::Runtime;

pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// A connection to a daemon.
pub struct Client {
    runtime: Runtime,
    sender: SendRequest<Full<Bytes>>,
}

/// A command's outcome.
pub struct Output {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Client {
    pub fn connect(socket: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let sender = runtime.block_on(async {
            let stream = tokio::net::UnixStream::connect(socket).await?;
            let (sender, connection) = handshake(TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            Ok::<_, Box<dyn std::error::Error>>(sender)
        })?;
        Ok(Self { runtime, sender })
    }

    fn send(&mut self, method: &str, path: &str, body: Vec<u8>) -> Result<Bytes> {
        let request = Request::builder()
            .method(method)
            .uri(format!("{API_PREFIX}{path}"))
            .header("host", "deltabox")
            .body(Full::new(Bytes::from(body)))?;
        let sender = &mut self.sender;
        let (status, bytes) = self.runtime.block_on(async {
            sender.ready().await?;
            let response = sender.send_request(request).await?;
            let status = response.status();
            Ok::<_, hyper::Error>((status, response.into_body().collect().await?.to_bytes()))
        })?;
        if status.is_success() {
            return Ok(bytes);
        }
        let error: ApiError = serde_json::from_slice(&bytes)?;
        Err(format!("{method} {path}: {error} {:?} {:?}", error.hint, error.refusals).into())
    }

    pub fn get<T: DeserializeOwned>(&mut self, path: &str) -> Result<T> {
        Ok(serde_json::from_slice(&self.send("GET", path, Vec::new())?)?)
    }

    pub fn post<T: DeserializeOwned>(&mut self, path: &str, body: &impl Serialize) -> Result<T> {
        Ok(serde_json::from_slice(&self.send(
            "POST",
            path,
            serde_json::to_vec(body)?,
        )?)?)
    }

    pub fn create(&mut self, name: &str, root: Root) -> Result<SandboxInfo> {
        self.post(
            "/sandboxes",
            &CreateRequest {
                name: Some(name.into()),
                root,
                ..CreateRequest::default()
            },
        )
    }

    pub fn remove(&mut self, name: &str) -> Result<()> {
        self.send("DELETE", &format!("/sandboxes/{name}?force=true"), Vec::new())
            .map(drop)
    }

    pub fn checkpoint(&mut self, name: &str) -> Result<CheckpointResult> {
        self.post(
            &format!("/sandboxes/{name}/checkpoints"),
            &CheckpointRequest::default(),
        )
    }

    pub fn rollback(&mut self, name: &str, to: &str) -> Result<RollbackResult> {
        self.post(
            &format!("/sandboxes/{name}/rollback"),
            &RollbackRequest { to: to.into() },
        )
    }

    /// Runs a shell script to its end.
    pub fn sh(&mut self, name: &str, script: &str) -> Result<Output> {
        self.exec(
            name,
            ExecRequest {
                argv: vec!["/bin/sh".into(), "-c".into(), script.into()],
                ..Default::default()
            },
        )
    }

    pub fn exec(&mut self, name: &str, request: ExecRequest) -> Result<Output> {
        let body = self.send(
            "POST",
            &format!("/sandboxes/{name}/exec"),
            serde_json::to_vec(&request)?,
        )?;
        let mut output = Output {
            code: -1,
            stdout: String::new(),
            stderr: String::new(),
        };
        for line in body.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
            let event: ExecEvent = serde_json::from_slice(line)?;
            let text = |data: &str| -> Result<String> {
                let bytes = base64::engine::general_purpose::STANDARD.decode(data)?;
                Ok(String::from_utf8_lossy(&bytes).into_owned())
            };
            match &event {
                ExecEvent::Stdout { data } => output.stdout += &text(data)?,
                ExecEvent::Stderr { data } => output.stderr += &text(data)?,
                other => output.code = other.exit_code().unwrap_or(output.code),
            }
        }
        Ok(output)
    }

    /// Like [`Client::sh`], and anything but exit code 0 is an error.
    pub fn must(&mut self, name: &str, script: &str) -> Result<String> {
        let output = self.sh(name, script)?;
        if output.code != 0 {
            return Err(format!("`{script}` ended with {}: {}", output.code, output.stderr).into());
        }
        Ok(output.stdout)
    }
}
