//! Running commands: the exec stream, standard input, resize and signals.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header::CONTENT_TYPE;
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use deltabox_api::{ExecEvent, ExecRequest, WindowSize};
use deltabox_state::{ExecEnd, ExecStarted, ExecStdio, Handle, Notice};
use futures_util::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::sync::mpsc;

use super::wire::{Failure, on_sandbox};

/// Bytes read from a command's output at once.
const READ_BYTES: usize = 32 << 10;
/// Events waiting for a slow client before the command's output is left in its pipe.
const QUEUE_EVENTS: usize = 16;

/// What the daemon holds of running commands, keyed by sandbox id and exec id.
#[derive(Default)]
pub struct Commands {
    table: Mutex<HashMap<String, Arc<Command>>>,
}

/// The daemon's ends of one command.
struct Command {
    /// Absent once its end was reached.
    stdin: tokio::sync::Mutex<Option<Sender>>,
    terminal: Option<OwnedFd>,
}

impl Commands {
    fn get(&self, key: &str) -> Result<Arc<Command>, Failure> {
        let found = self.table.lock().expect("not poisoned").get(key).cloned();
        found.ok_or_else(|| {
            deltabox_state::Error::not_found("no such running command: it may have ended").into()
        })
    }
}

fn key(handle: &Handle, exec: &str) -> String {
    format!("{}/{exec}", handle.id())
}

/// Starts a command and streams its events until its last one.
pub async fn exec(
    commands: Arc<Commands>,
    handle: Handle,
    request: ExecRequest,
) -> Result<Response, Failure> {
    let (notify, notices) = mpsc::unbounded_channel();
    let input = request
        .stdin_data
        .as_deref()
        .map(|data| BASE64.decode(data))
        .transpose();
    let input = input.map_err(|error| Failure::usage(format!("stdin_data is not base64: {error}")))?;
    if input.is_some() && request.stdin {
        return Err(Failure::usage("stdin and stdin_data exclude each other"));
    }
    let (detach, timeout) = (request.detach, request.timeout_ms.map(Duration::from_millis));
    let mut request = request;
    request.stdin |= input.is_some();
    let started = on_sandbox(&handle, move |sandbox| {
        sandbox.exec(&request, Box::new(move |notice| drop(notify.send(notice))))
    })
    .await?;
    let (events, receive) = mpsc::channel(QUEUE_EVENTS);
    let first = ExecEvent::Started {
        id: started.id.to_string(),
        pid: started.pid,
    };
    let session = Session::new(commands, handle, started, events)
        .map_err(|e| Failure::internal("cannot watch the command", e))?;
    tokio::spawn(session.run(input, notices, timeout, detach));
    Ok(event_stream(first, receive, detach))
}

fn event_stream(first: ExecEvent, receive: mpsc::Receiver<ExecEvent>, detach: bool) -> Response {
    let first = futures_util::stream::once(std::future::ready(first));
    let rest =
        futures_util::stream::unfold(
            receive,
            |mut r| async move { r.recv().await.map(|event| (event, r)) },
        );
    let lines = first
        .chain(rest.take(if detach { 0 } else { usize::MAX }))
        .map(|event| {
            let mut line = serde_json::to_vec(&event).expect("events are plain data");
            line.push(b'\n');
            Ok::<_, std::convert::Infallible>(Bytes::from(line))
        });
    Response::builder()
        .header(CONTENT_TYPE, "application/x-ndjson")
        .body(Body::from_stream(lines))
        .expect("the header is valid")
}

/// One running command as its streaming task sees it.
struct Session {
    commands: Arc<Commands>,
    handle: Handle,
    id: String,
    key: String,
    command: Arc<Command>,
    stdout: Option<Receiver>,
    stderr: Option<Receiver>,
    events: mpsc::Sender<ExecEvent>,
}

impl Session {
    fn new(
        commands: Arc<Commands>,
        handle: Handle,
        started: ExecStarted,
        events: mpsc::Sender<ExecEvent>,
    ) -> std::io::Result<Self> {
        let (mut stdin, mut stdout, mut stderr, mut terminal) = (None, None, None, None);
        match started.stdio {
            ExecStdio::None => {}
            ExecStdio::Pipes {
                stdin: i,
                stdout: o,
                stderr: e,
            } => {
                stdin = i.map(writer).transpose()?;
                stdout = Some(reader(o)?);
                stderr = Some(reader(e)?);
            }
            ExecStdio::Terminal { master } => {
                stdin = Some(writer(master.try_clone()?)?);
                terminal = Some(master.try_clone()?);
                stdout = Some(reader(master)?);
            }
        }
        let id = started.id.to_string();
        let key = key(&handle, &id);
        let command = Arc::new(Command {
            stdin: tokio::sync::Mutex::new(stdin),
            terminal,
        });
        commands
            .table
            .lock()
            .expect("not poisoned")
            .insert(key.clone(), command.clone());
        Ok(Self {
            commands,
            handle,
            id,
            key,
            command,
            stdout,
            stderr,
            events,
        })
    }

    async fn run(
        mut self,
        input: Option<Vec<u8>>,
        mut notices: mpsc::UnboundedReceiver<Notice>,
        timeout: Option<Duration>,
        detached: bool,
    ) {
        if let Some(input) = input {
            let command = self.command.clone();
            tokio::spawn(async move {
                let mut stdin = command.stdin.lock().await;
                if let Some(pipe) = stdin.as_mut() {
                    // A command that ends without reading its input is not an error.
                    let _ = pipe.write_all(&input).await;
                }
                *stdin = None;
            });
        }
        let deadline = tokio::time::sleep(timeout.unwrap_or(Duration::from_secs(u32::MAX.into())));
        tokio::pin!(deadline);
        let mut timed_out = false;
        let mut gone = detached;
        let mut buffers = (vec![0; READ_BYTES], vec![0; READ_BYTES]);
        let last = loop {
            tokio::select! {
                // Output first, so that a command's last words precede its exit.
                biased;
                read = read_some(self.stdout.as_mut(), &mut buffers.0) => self.output(read, false, &buffers.0).await,
                read = read_some(self.stderr.as_mut(), &mut buffers.1) => self.output(read, true, &buffers.1).await,
                notice = notices.recv() => match notice {
                    Some(Notice::RolledBack(id)) => self.send(ExecEvent::RolledBack { checkpoint: id.to_string() }).await,
                    Some(Notice::Ended(end)) => break last_event(end, timed_out),
                    None => break ExecEvent::Lost { message: "the sandbox ended".into() },
                },
                () = &mut deadline, if !timed_out => {
                    timed_out = true;
                    self.signal(rustix::process::Signal::KILL.as_raw());
                }
                () = self.events.closed(), if !gone => {
                    gone = true;
                    self.signal(rustix::process::Signal::HUP.as_raw());
                }
            }
        };
        self.drain(&mut buffers.0).await;
        self.commands
            .table
            .lock()
            .expect("not poisoned")
            .remove(&self.key);
        self.send(last).await;
    }

    fn signal(&self, signal: i32) {
        let id = self.id.clone();
        // The command may have ended meanwhile; its exit arrives as a notice in any case.
        self.handle
            .submit(move |sandbox| drop(sandbox.signal_exec(&id, signal)));
    }

    /// What is already in the pipes when the command has ended; descendants may hold them open for longer.
    async fn drain(&mut self, buffer: &mut [u8]) {
        for error_stream in [false, true] {
            let stream = if error_stream {
                self.stderr.take()
            } else {
                self.stdout.take()
            };
            let Some(pipe) = stream else { continue };
            // Not `try_read`, which says that there is nothing while the runtime has not yet noticed that there is.
            while let Ok(n @ 1..) = rustix::io::read(&pipe, &mut *buffer) {
                self.send(output_event(error_stream, &buffer[..n])).await;
            }
        }
    }

    async fn output(&mut self, read: std::io::Result<usize>, error_stream: bool, buffer: &[u8]) {
        match read {
            Ok(n @ 1..) => self.send(output_event(error_stream, &buffer[..n])).await,
            // The end, or EIO: the last user of the terminal's other side closed it.
            Ok(0) | Err(_) if error_stream => self.stderr = None,
            Ok(0) | Err(_) => self.stdout = None,
        }
    }

    async fn send(&self, event: ExecEvent) {
        // A client that went away does not stop the command from being watched.
        let _ = self.events.send(event).await;
    }
}

fn output_event(error_stream: bool, bytes: &[u8]) -> ExecEvent {
    let data = BASE64.encode(bytes);
    if error_stream {
        ExecEvent::Stderr { data }
    } else {
        ExecEvent::Stdout { data }
    }
}

fn last_event(end: ExecEnd, timed_out: bool) -> ExecEvent {
    match end {
        ExecEnd::Exited { code, signal } => ExecEvent::Exited {
            code,
            signal,
            timed_out,
        },
        ExecEnd::Discarded(id) => ExecEvent::Discarded {
            checkpoint: id.to_string(),
        },
        ExecEnd::Lost(message) => ExecEvent::Lost { message },
    }
}

/// A pipe's or a terminal's side; the type's name says pipe, what it needs is only that reads and writes can wait.
fn reader(fd: OwnedFd) -> std::io::Result<Receiver> {
    rustix::io::ioctl_fionbio(&fd, true)?;
    Receiver::from_owned_fd_unchecked(fd)
}

fn writer(fd: OwnedFd) -> std::io::Result<Sender> {
    rustix::io::ioctl_fionbio(&fd, true)?;
    Sender::from_owned_fd_unchecked(fd)
}

async fn read_some(pipe: Option<&mut Receiver>, buffer: &mut [u8]) -> std::io::Result<usize> {
    match pipe {
        None => std::future::pending().await,
        Some(pipe) => pipe.read(buffer).await,
    }
}

/// Writes a request's body to a command's standard input; its end closes it unless `keep`.
pub async fn stdin(
    commands: &Commands,
    handle: &Handle,
    exec: &str,
    body: Body,
    keep: bool,
) -> Result<(), Failure> {
    let command = commands.get(&key(handle, exec))?;
    let mut stdin = command.stdin.lock().await;
    let mut chunks = body.into_data_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| Failure::internal("the request's body broke off", error))?;
        let Some(pipe) = stdin.as_mut() else {
            return Err(deltabox_state::Error::conflict("the command's standard input is closed").into());
        };
        if let Err(error) = pipe.write_all(&chunk).await {
            *stdin = None;
            return Err(deltabox_state::Error::conflict(format!(
                "the command does not read its input: {error}"
            ))
            .into());
        }
    }
    // With a terminal the end of the input is a character the caller types, not a closed descriptor.
    if !keep && command.terminal.is_none() {
        *stdin = None;
    }
    Ok(())
}

/// Sets the size of a command's terminal.
pub fn resize(commands: &Commands, handle: &Handle, exec: &str, size: WindowSize) -> Result<(), Failure> {
    let command = commands.get(&key(handle, exec))?;
    let Some(terminal) = &command.terminal else {
        return Err(Failure::usage("the command has no terminal"));
    };
    let size = rustix::termios::Winsize {
        ws_row: size.rows,
        ws_col: size.cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    rustix::termios::tcsetwinsize(terminal, size)
        .map_err(|error| Failure::internal("cannot resize the terminal", error))
}
