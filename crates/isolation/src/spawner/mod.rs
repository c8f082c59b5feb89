//! The spawner: a single-threaded process that clones inits, and the owner's handle to it.

mod process;

use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::cell::Cell;
use crate::cgroup::{CgroupDriver, Limits};
use crate::error::{Context, Error, Result};
use crate::protocol::{SpawnerReply, SpawnerRequest};
use crate::wire::{Channel, socket_pair};

pub use process::main;

/// How long the spawner may take for an answer.
const ANSWER_WAIT: Duration = Duration::from_secs(20);

/// How many identities each cell has: as many as fit into 16 bits, which is what file systems and programs expect.
pub const UIDS_PER_CELL: u32 = 65536;

/// What a new cell is to be.
#[derive(Debug, Clone)]
pub struct CellSpec {
    /// Names the cell's cgroups: letters, digits, `-`, `_`; unique among the owner's cells.
    pub id: String,
    /// First of the [`UIDS_PER_CELL`] user and group ids, outside, that the cell's identities map to. Not 0.
    pub uid_base: u32,
    /// Limits, changeable later through [`Cell::set_limits`].
    pub limits: Limits,
}

/// The owner's handle. The process ends when this is dropped, and its cells with it.
#[derive(Debug)]
pub struct Spawner {
    channel: Mutex<Channel>,
    process: Mutex<Child>,
    driver: Arc<CgroupDriver>,
}

impl Spawner {
    /// Starts `command`, a program that calls [`main`]: usually the owner's own binary. Its standard input becomes
    /// the socket between the two; standard error is inherited.
    ///
    /// Errors: the program cannot be run, or cannot set itself up (missing privileges).
    pub fn start(mut command: Command, driver: Arc<CgroupDriver>) -> Result<Self> {
        let (ours, theirs) = socket_pair().context("make a socket pair")?;
        let process = command
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .env_clear()
            .spawn()
            .context(format!(
                "start the spawner {}",
                command.get_program().to_string_lossy()
            ))?;
        // The command holds the other end of the socket, which would hide the spawner's death.
        drop(command);
        let spawner = Self {
            channel: Mutex::new(ours.into()),
            process: Mutex::new(process),
            driver,
        };
        let (reply, _) = spawner.answer(&spawner.lock(), "set itself up")?;
        match reply {
            SpawnerReply::Ready => Ok(spawner),
            SpawnerReply::Failed(failure) => Err(failure.into()),
            SpawnerReply::Cell { .. } => Err(unexpected()),
        }
    }

    /// The cgroup driver its cells use.
    pub fn driver(&self) -> &Arc<CgroupDriver> {
        &self.driver
    }

    /// PID of the spawner.
    pub fn pid(&self) -> i32 {
        self.process.lock().unwrap_or_else(PoisonError::into_inner).id() as i32
    }

    /// Makes a cell without a root: namespaces, cgroups, init. Takes about 10 ms, nearly all of it waiting for the
    /// kernel to move init between cgroups, so keep a [`crate::CellPool`].
    pub fn cell(&self, spec: &CellSpec) -> Result<Cell> {
        let range_fits = spec.uid_base.checked_add(UIDS_PER_CELL).is_some();
        if spec.uid_base < UIDS_PER_CELL || !range_fits {
            return Err(Error::Invalid(format!(
                "the cell's first user id {} must leave the machine's own ids below {UIDS_PER_CELL} alone",
                spec.uid_base
            )));
        }
        self.driver.features().check(&spec.limits)?;
        let mut cgroup = self.driver.create(&spec.id)?;
        match self.clone_init(spec, &cgroup) {
            Ok((pid, pidfd, requests, events)) => {
                let cell = Cell::new(spec, pid, pidfd, cgroup, requests, events);
                cell.boot(&spec.limits)?;
                Ok(cell)
            }
            Err(error) => {
                cgroup.remove()?;
                Err(error)
            }
        }
    }

    fn clone_init(
        &self,
        spec: &CellSpec,
        cgroup: &crate::cgroup::Cgroup,
    ) -> Result<(i32, OwnedFd, Channel, Channel)> {
        cgroup.delegate(spec.uid_base)?;
        let (requests, init_requests) = socket_pair().context("make a socket pair")?;
        let (events, init_events) = socket_pair().context("make a socket pair")?;
        // Where init shares the commands' memory limit they must be killed before it.
        let oom_score_adj = self
            .driver
            .init_shares_memory_limit()
            .then_some(COMMAND_OOM_SCORE_ADJ);
        let cell = cgroup.cell()?;
        let request = SpawnerRequest::Cell {
            uid_base: spec.uid_base,
            oom_score_adj,
        };
        let fds = [
            init_requests.as_fd(),
            init_events.as_fd(),
            cell.as_fd(),
            cgroup.run(),
        ];
        let channel = self.lock();
        channel
            .send(&request, &fds)
            .map_err(|_| Error::Gone { who: "spawner" })?;
        match self.answer(&channel, "make a cell")? {
            (SpawnerReply::Cell { pid }, mut fds) if fds.len() == 1 => {
                Ok((pid, fds.remove(0), requests.into(), events.into()))
            }
            (SpawnerReply::Failed(failure), _) => Err(failure.into()),
            _ => Err(unexpected()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Channel> {
        self.channel.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, channel: &Channel, what: &'static str) -> Result<(SpawnerReply, Vec<OwnedFd>)> {
        wait_readable(channel, ANSWER_WAIT, "spawner", what)?;
        match channel.receive() {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(Error::Gone { who: "spawner" }),
            Err(error) => Err(error).context("hear from the spawner"),
        }
    }
}

/// Added to the badness of commands, in thousandths of the memory limit.
const COMMAND_OOM_SCORE_ADJ: i32 = 100;

impl Drop for Spawner {
    fn drop(&mut self) {
        let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        // Killing rather than asking: inits die with it by PR_SET_PDEATHSIG. It may be dead already.
        let _ = process.kill();
        let _ = process.wait();
    }
}

fn unexpected() -> Error {
    Error::Invalid("the spawner answered something else than was asked".into())
}

/// Waits until something can be read, at most `bound`.
pub(crate) fn wait_readable(
    fd: impl AsFd,
    bound: Duration,
    who: &'static str,
    what: &'static str,
) -> Result<()> {
    let end = std::time::Instant::now() + bound;
    loop {
        let left = end.saturating_duration_since(std::time::Instant::now());
        let timeout = Timespec {
            tv_sec: left.as_secs() as _,
            tv_nsec: left.subsec_nanos() as _,
        };
        match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => {
                return Err(Error::Silent {
                    who,
                    seconds: bound.as_secs(),
                    what,
                });
            }
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("wait for an answer"),
        }
    }
}
