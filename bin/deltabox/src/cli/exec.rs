//! `deltabox exec`
//!
//! One connection carries the command's events; standard input, signals and window sizes go over connections of
//! their own. Everything runs on one thread, except reading standard input and writing output: those may block for
//! long, and signals must be forwarded meanwhile.

mod stdio;

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use deltabox_api::{ApiError, EXIT_EXEC_FAILED, ErrorKind, ExecEvent, ExecRequest, SignalRequest};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::{Method, Response};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::create::parse_env;
use super::failure::{Failure, Outcome};
use super::output::{emit, note};
use super::terminal::{RawMode, window_size};
use super::units::parse_duration_ms;
use crate::client::{Client, Endpoint, escape, json_request, request, sandbox_path};
use stdio::{Output, Stream, stdin_body};

/// Exit code for a command that could not be started; the daemon knows whether it was found.
const EXIT_CODE_HEADER: &str = "x-deltabox-exit-code";
/// Longest line of the event stream that is accepted. The daemon's are below 64 KiB.
const LINE_BYTES_MAX: usize = 16 << 20;

/// Run a command in a sandbox; the exit code is the command's
#[derive(clap::Args)]
pub struct Args {
    /// Name of the sandbox
    name: String,
    /// Forward standard input
    #[arg(long, short)]
    interactive: bool,
    /// Give the command a terminal
    #[arg(long, short)]
    tty: bool,
    /// Return after the start and print the command's id; its output is discarded
    #[arg(long, short, conflicts_with_all = ["interactive", "tty"])]
    detach: bool,
    /// User inside: name, uid, name:group or uid:gid; root when absent
    #[arg(long, short)]
    user: Option<String>,
    /// Directory to start in
    #[arg(long, short, value_name = "DIR")]
    workdir: Option<String>,
    /// Environment; without a value, the caller's own
    #[arg(long = "env", short, value_name = "K[=V]")]
    env: Vec<String>,
    /// Kill the command after this time, for example 30s
    #[arg(long, value_name = "TIME", value_parser = parse_duration_ms)]
    timeout: Option<u64>,
    /// The command and its arguments
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "CMD"
    )]
    command: Vec<String>,
}

pub fn run(args: Args) -> Outcome {
    run_args(args).map_err(|failure| match failure {
        Failure::Error { exit_code: None, .. } => failure.with_exit_code(EXIT_EXEC_FAILED),
        failure => failure,
    })
}

fn run_args(args: Args) -> Outcome {
    let env = parse_env(&args.env)?;
    let request = ExecRequest {
        argv: args.command,
        env: if args.tty { terminal_env(env) } else { env },
        workdir: args.workdir,
        user: args.user,
        tty: args.tty.then(window_size),
        stdin: args.interactive,
        detach: args.detach,
        timeout_ms: args.timeout,
        ..ExecRequest::default()
    };
    let client = Client::from_env()?;
    let session = Session {
        client: &client,
        sandbox: &args.name,
        request: &request,
    };
    session.run()
}

/// The kind of the local terminal, unless the caller chose one.
pub fn terminal_env(mut env: BTreeMap<String, String>) -> BTreeMap<String, String> {
    if let (false, Ok(term)) = (env.contains_key("TERM"), std::env::var("TERM")) {
        env.insert("TERM".to_owned(), term);
    }
    env
}

/// A command connected to our standard streams.
pub struct Session<'a> {
    pub client: &'a Client,
    pub sandbox: &'a str,
    pub request: &'a ExecRequest,
}

impl Session<'_> {
    pub fn run(&self) -> Outcome {
        self.client
            .block_on(self.run_async())
            .map_err(|failure| match failure {
                Failure::Error { exit_code: None, .. } => failure.with_exit_code(EXIT_EXEC_FAILED),
                failure => failure,
            })
    }

    async fn run_async(&self) -> Outcome {
        let mut signals = Signals::watch(self.request.tty.is_some())?;
        let request = json_request(Method::POST, &sandbox_path(self.sandbox, "/exec"), self.request)?;
        let response = tokio::select! {
            response = self.client.endpoint().send(request) => response?,
            // Not started yet: there is nothing to forward it to.
            number = signals.next_deadly() => return Ok(128 + number),
        };
        if !response.status().is_success() {
            return Err(self.start_failure(response).await);
        }
        let mut events = Events::new(self.client.endpoint().clone(), response.into_body());
        let Some(ExecEvent::Started { id, .. }) = events.next().await? else {
            return Err(ApiError::new(
                ErrorKind::Internal,
                "the daemon did not say that the command started",
            )
            .into());
        };
        if self.request.detach {
            emit(&format!("{id}\n"))?;
            return Ok(0);
        }
        let command = Command {
            endpoint: self.client.endpoint().clone(),
            path: sandbox_path(self.sandbox, &format!("/execs/{}", escape(&id))),
        };
        let raw_mode = (self.request.tty.is_some() && self.request.stdin).then(RawMode::enter);
        if self.request.stdin {
            tokio::spawn(command.clone().forward_stdin(self.request.tty.is_some()));
        }
        tokio::spawn(command.forward_signals(signals));
        let outcome = self.follow(&mut events).await;
        drop(raw_mode);
        outcome
    }

    /// An error before the start, with the exit code the daemon has for it.
    async fn start_failure(&self, response: Response<Incoming>) -> Failure {
        let code = response.headers().get(EXIT_CODE_HEADER);
        let code = code
            .and_then(|code| code.to_str().ok()?.parse().ok())
            .unwrap_or(EXIT_EXEC_FAILED);
        Failure::from(self.client.endpoint().error_of(response).await).with_exit_code(code)
    }

    /// Passes output on until the last event.
    async fn follow(&self, events: &mut Events) -> Outcome {
        let output = Output::start();
        loop {
            let Some(event) = events.next().await? else {
                let error = ApiError::new(ErrorKind::Unreachable, "the daemon ended before the command did");
                return Err(error.into());
            };
            let (stream, data) = match event {
                ExecEvent::Stdout { data } => (Stream::Stdout, data),
                ExecEvent::Stderr { data } => (Stream::Stderr, data),
                ExecEvent::RolledBack { checkpoint } => {
                    self.remark(&format!(
                        "the sandbox was rolled back to {checkpoint}; the command goes on from there"
                    ));
                    continue;
                }
                ExecEvent::Started { .. } => continue,
                last => {
                    // What the command wrote comes before what is said about its end.
                    output.finish()?;
                    return self.end(&last);
                }
            };
            if !output.write(stream, decode(&data)?).await {
                output.finish()?;
                return Err(Failure::OutputClosed);
            }
        }
    }

    fn end(&self, last: &ExecEvent) -> Outcome {
        match last {
            ExecEvent::Exited { timed_out: true, .. } => self.remark("the command exceeded its time and was killed"),
            ExecEvent::Discarded { checkpoint } => self.remark(&format!(
                "the sandbox was rolled back to {checkpoint}, in which the command does not exist: it was ended"
            )),
            ExecEvent::Lost { message } => {
                return Err(ApiError::new(ErrorKind::Internal, format!("the command was lost: {message}")).into());
            }
            _ => {}
        }
        Ok(last.exit_code().unwrap_or(EXIT_EXEC_FAILED))
    }

    /// A note about the command; in raw mode a line must return to its beginning by itself.
    fn remark(&self, text: &str) {
        let newline = if self.request.tty.is_some() { "\r" } else { "" };
        note(&format!("{newline}deltabox: {text}{newline}"));
    }
}

fn decode(data: &str) -> Result<Vec<u8>, ApiError> {
    BASE64.decode(data).map_err(|error| {
        ApiError::new(
            ErrorKind::Internal,
            format!("the daemon's answer is not understood: {error}"),
        )
    })
}

/// The lines of an exec stream.
struct Events {
    endpoint: Endpoint,
    body: Incoming,
    buffer: Vec<u8>,
    /// Where the search for a line's end goes on.
    searched: usize,
}

impl Events {
    fn new(endpoint: Endpoint, body: Incoming) -> Self {
        Self {
            endpoint,
            body,
            buffer: Vec::new(),
            searched: 0,
        }
    }

    /// The next event; none at the end of the stream.
    async fn next(&mut self) -> Result<Option<ExecEvent>, ApiError> {
        loop {
            if let Some(end) = self.buffer[self.searched..]
                .iter()
                .position(|byte| *byte == b'\n')
            {
                let line: Vec<u8> = self.buffer.drain(..=self.searched + end).collect();
                self.searched = 0;
                let event = serde_json::from_slice(&line).map_err(|error| {
                    ApiError::new(
                        ErrorKind::Internal,
                        format!("the daemon's answer is not understood: {error}"),
                    )
                })?;
                return Ok(Some(event));
            }
            self.searched = self.buffer.len();
            if self.searched > LINE_BYTES_MAX {
                return Err(ApiError::new(
                    ErrorKind::Internal,
                    "the daemon sent a line without an end",
                ));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(self.endpoint.unreachable(&error)),
                Some(Ok(frame)) => self
                    .buffer
                    .extend_from_slice(frame.data_ref().map_or(&[], |data| data)),
            }
        }
    }
}

/// A running command, as the calls about it name it.
#[derive(Clone)]
struct Command {
    endpoint: Endpoint,
    path: String,
}

impl Command {
    /// Sends standard input as it comes; its end closes the command's.
    async fn forward_stdin(self, tty: bool) {
        let Ok(request) = request(Method::POST, &format!("{}/stdin", self.path), stdin_body(tty)) else {
            return;
        };
        // A command that does not read its input, or ends first, is not an error of ours.
        let _ = self.endpoint.send(request).await;
    }

    async fn forward_signals(self, mut signals: Signals) {
        loop {
            let request = match signals.next().await {
                Received::Signal(signal) => json_request(
                    Method::POST,
                    &format!("{}/signal", self.path),
                    &SignalRequest { signal },
                ),
                Received::Resized => {
                    json_request(Method::POST, &format!("{}/resize", self.path), &window_size())
                }
            };
            if let Ok(request) = request {
                // The command may have ended meanwhile; the event stream will say so.
                let _ = self.endpoint.send(request).await;
            }
        }
    }
}

/// Signals that are meant for the command.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    quit: Signal,
    /// Only watched with a terminal.
    resized: Option<Signal>,
}

enum Received {
    Signal(i32),
    Resized,
}

impl Signals {
    fn watch(tty: bool) -> Result<Self, ApiError> {
        let watch = |kind| {
            signal(kind)
                .map_err(|error| ApiError::new(ErrorKind::Internal, format!("cannot watch signals: {error}")))
        };
        Ok(Self {
            interrupt: watch(SignalKind::interrupt())?,
            terminate: watch(SignalKind::terminate())?,
            hangup: watch(SignalKind::hangup())?,
            quit: watch(SignalKind::quit())?,
            resized: tty.then(|| watch(SignalKind::window_change())).transpose()?,
        })
    }

    async fn next(&mut self) -> Received {
        let resized = async {
            match &mut self.resized {
                Some(signal) => signal.recv().await,
                None => std::future::pending().await,
            }
        };
        let kind = tokio::select! {
            _ = self.interrupt.recv() => SignalKind::interrupt(),
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = self.hangup.recv() => SignalKind::hangup(),
            _ = self.quit.recv() => SignalKind::quit(),
            _ = resized => return Received::Resized,
        };
        Received::Signal(kind.as_raw_value())
    }

    /// The next signal that would have ended us.
    async fn next_deadly(&mut self) -> i32 {
        loop {
            if let Received::Signal(number) = self.next().await {
                return number;
            }
        }
    }
}
