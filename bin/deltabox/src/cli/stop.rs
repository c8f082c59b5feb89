//! `deltabox stop`

use std::time::{Duration, Instant};

use deltabox_api::{ApiError, ErrorKind, Health};
use hyper::Method;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::failure::Outcome;
use super::output::note;
use crate::client::{Client, Home, OutBody, is_running, request};

/// How long the daemon may take to end everything it holds.
const STOP_MAX: Duration = Duration::from_secs(30);

/// End the daemon and all processes of its sandboxes; durable checkpoints stay
#[derive(clap::Args)]
pub struct Args {}

pub fn run(_args: &Args) -> Outcome {
    let home = Home::from_env()?;
    if !is_running(&home)? {
        note(&format!("no daemon runs for {}", home.path().display()));
        return Ok(0);
    }
    stop(&Client::new(home)?)
}

/// Ends the daemon of this client and waits for it.
pub fn stop(client: &Client) -> Outcome {
    let health: Health = client.get("/health")?;
    // Opened before the request, so that it cannot mean a later process of the same number.
    let pid = i32::try_from(health.pid).ok().and_then(Pid::from_raw);
    let process = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    client.perform(request(Method::POST, "/shutdown", OutBody::empty())?)?;
    let Some(process) = process else {
        return Ok(0);
    };
    let deadline = Instant::now() + STOP_MAX;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: left.as_secs().cast_signed(),
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&timeout)) {
            Ok(1..) => return Ok(0),
            Ok(0) => break,
            Err(_) if !left.is_zero() => {}
            Err(_) => break,
        }
    }
    Err(ApiError::new(
        ErrorKind::Internal,
        format!(
            "the daemon (pid {}) was asked to end and still runs after {} s",
            health.pid,
            STOP_MAX.as_secs()
        ),
    )
    .hint(format!(
        "see {}, or kill it: the next start cleans up",
        client.home().log().display()
    ))
    .into())
}
