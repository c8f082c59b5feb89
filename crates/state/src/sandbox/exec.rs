//! Commands run by callers: start, signals, their end.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use deltabox_api::{ExecRequest, WindowSize};
use deltabox_isolation::{Event, ExecSpec, ExitStatus, KillTarget, Stdio};
use deltabox_process::descriptor::ExternalId;
use rustix::fs::FileType;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer};

use super::processes::Born;
use super::{Live, Sandbox};
use crate::error::{Error, Result};
use crate::id::{CheckpointId, ExecId};

/// The caller's ends of a command's standard streams.
pub enum ExecStdio {
    /// Detached: nothing to read or write.
    None,
    Pipes {
        stdin: Option<OwnedFd>,
        stdout: OwnedFd,
        stderr: OwnedFd,
    },
    Terminal {
        master: OwnedFd,
    },
}

/// A command that was started.
pub struct ExecStarted {
    pub id: ExecId,
    /// Process id inside the sandbox.
    pub pid: i32,
    pub stdio: ExecStdio,
}

/// How a command's stream ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecEnd {
    Exited {
        code: Option<i32>,
        signal: Option<i32>,
    },
    /// A rollback led to a state in which the command did not exist.
    Discarded(CheckpointId),
    /// The sandbox was removed or failed.
    Lost(String),
}

/// What the starter of a command is told; [`Notice::Ended`] is the last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    RolledBack(CheckpointId),
    Ended(ExecEnd),
}

/// Called on the sandbox's thread; must not block.
pub type Notify = Box<dyn FnMut(Notice) + Send>;

/// A command that has not ended.
pub(crate) struct Exec {
    pub pid_inside: i32,
    /// Init's number of the start: process ids are reused.
    start: u64,
    pub argv: Vec<String>,
    pub tty: bool,
    notify: Notify,
    externals: Vec<ExternalId>,
}

impl Exec {
    pub fn end(mut self, end: ExecEnd) {
        (self.notify)(Notice::Ended(end));
    }
}

/// The search path of commands that do not bring their own.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

impl Sandbox {
    /// Starts a command; `notify` hears of rollbacks and of its end.
    pub fn exec(&mut self, request: &ExecRequest, notify: Notify) -> Result<ExecStarted> {
        if request.argv.is_empty() || request.argv.iter().any(|arg| arg.contains('\0')) {
            return Err(Error::usage(
                "a command needs at least a program, and no argument may contain a NUL byte",
            ));
        }
        let record = self.record.clone();
        let live = self.live()?;
        let user = request.user.as_deref().or(record.user.as_deref()).unwrap_or("0");
        let user =
            deltabox_isolation::users::resolve(live.root(), user).map_err(|e| Error::usage(e.to_string()))?;
        let env = environment(&record.env, request, &user.home, record.id.as_str());
        let (stdio, caller) = streams(live, request)?;
        let spec = ExecSpec {
            argv: request.argv.iter().map(Into::into).collect(),
            env: env
                .into_iter()
                .map(|(key, value)| (key.into(), value.into()))
                .collect(),
            cwd: request
                .workdir
                .clone()
                .or(record.workdir)
                .unwrap_or_else(|| "/".into())
                .into(),
            uid: user.uid,
            gid: user.gid,
            groups: user.groups,
            umask: 0o022,
            rlimits: Vec::new(),
            stdio,
        };
        let sandbox_ends = match &spec.stdio {
            Stdio::Fds(fds) if !request.detach => duplicates(fds)?,
            _ => Vec::new(),
        };
        let started = live.cell.exec(spec)?;
        let mut externals = Vec::new();
        for end in &sandbox_ends {
            externals.push(live.processes.add_external(end.as_fd(), true)?);
        }
        if let Some(master) = &started.pty_master {
            // The end inside, that is: all masters of a sandbox's terminals are one inode.
            let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
            let inside = ioctl_tiocgptpeer(master, flags)
                .map_err(|error| Error::io("cannot look at a command's terminal", &error.into()))?;
            externals.push(live.processes.add_external(inside.as_fd(), false)?);
        }
        let id = ExecId::random();
        let stdio = match started.pty_master {
            Some(master) => ExecStdio::Terminal { master },
            None => caller,
        };
        let exec = Exec {
            pid_inside: started.pid_inside,
            start: started.start,
            argv: request.argv.clone(),
            tty: request.tty.is_some(),
            notify,
            externals,
        };
        live.execs.insert(id.clone(), exec);
        Ok(ExecStarted {
            id,
            pid: started.pid_inside,
            stdio,
        })
    }

    /// Sends a signal to a command's process group, which is its session's until it makes others.
    pub fn signal_exec(&mut self, id: &str, signal: i32) -> Result<()> {
        let live = self.live()?;
        let exec = live.execs.get(&ExecId::from(id));
        let pid = exec
            .ok_or_else(|| Error::not_found(format!("no running command {id}")))?
            .pid_inside;
        live.cell
            .signal(KillTarget::Group(pid), signal)
            .map_err(Error::from)
    }

    /// Takes note of commands that ended.
    pub(super) fn take_events(&mut self) {
        let Some(live) = &mut self.live else { return };
        match live.cell.poll_events() {
            Ok(events) => {
                for Event::Exited { start, status, .. } in events {
                    live.ended(start, status);
                }
            }
            Err(error) => {
                let message = format!("its init ended: {error}");
                tracing::error!(sandbox = %self.record.name, %message);
                self.fail(message);
            }
        }
    }

    /// Gives the live state up; durable and ready checkpoints stay.
    pub(super) fn fail(&mut self, message: String) {
        if let Some(mut live) = self.live.take() {
            live.end_execs(|| ExecEnd::Lost(message.clone()));
        }
        self.failure = Some(message);
    }

    /// Ends the cell, if there is one.
    pub(crate) fn end(&mut self, why: &str) {
        for (_, replies) in self.waiting.drain() {
            let gone = Error::conflict(format!("the sandbox ended: {why}"));
            replies.into_iter().for_each(|reply| reply(Err(gone.clone())));
        }
        if let Some(mut live) = self.live.take() {
            live.end_execs(|| ExecEnd::Lost(why.to_owned()));
        }
    }
}

impl Live {
    fn ended(&mut self, start: Option<u64>, status: ExitStatus) {
        let id = self
            .execs
            .iter()
            .find(|(_, exec)| Some(exec.start) == start)
            .map(|(id, _)| id.clone());
        if let Some(exec) = id.and_then(|id| self.remove_exec(&id)) {
            let (code, signal) = match status {
                ExitStatus::Code(code) => (Some(code), None),
                ExitStatus::Signal { signal, .. } => (None, Some(signal)),
            };
            exec.end(ExecEnd::Exited { code, signal });
        }
    }

    /// After a rollback: commands whose first process was made again go on with the new one; the end of the old one,
    /// of which init tells yet, is not theirs.
    pub(super) fn follow_execs(&mut self, existed: &[ExecId], born: &[Born]) {
        for (id, exec) in &mut self.execs {
            let own = born.iter().find(|born| born.pid_inside == exec.pid_inside);
            if let Some(own) = own.filter(|_| existed.contains(id)) {
                exec.start = own.start;
            }
        }
    }

    /// After a rollback: commands that existed at the checkpoint go on, the streams of the others end.
    pub(super) fn tell_execs(&mut self, checkpoint: &CheckpointId, existed: &[ExecId]) {
        let gone: Vec<ExecId> = self
            .execs
            .keys()
            .filter(|id| !existed.contains(id))
            .cloned()
            .collect();
        for id in gone {
            if let Some(exec) = self.remove_exec(&id) {
                exec.end(ExecEnd::Discarded(checkpoint.clone()));
            }
        }
        for exec in self.execs.values_mut() {
            (exec.notify)(Notice::RolledBack(checkpoint.clone()));
        }
    }

    fn remove_exec(&mut self, id: &ExecId) -> Option<Exec> {
        let exec = self.execs.remove(id)?;
        // A checkpoint that holds the command needs its streams to make it again.
        if !self.checkpointed.contains(id) {
            for &external in &exec.externals {
                self.processes.remove_external(external);
            }
        }
        Some(exec)
    }

    /// Ends the streams of all running commands.
    pub fn end_execs(&mut self, end: impl Fn() -> ExecEnd) {
        for (_, exec) in self.execs.drain() {
            exec.end(end());
        }
    }
}

/// The pipes among a command's streams; /dev/null is not ours.
fn duplicates(fds: &[OwnedFd; 3]) -> Result<Vec<OwnedFd>> {
    let failed = |error: std::io::Error| Error::io("cannot keep a command's stream", &error);
    let is_pipe = |fd: &OwnedFd| {
        rustix::fs::fstat(fd).is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::Fifo)
    };
    fds.iter()
        .filter(|fd| is_pipe(fd))
        .map(|fd| fd.try_clone().map_err(failed))
        .collect()
}

fn environment(
    sandbox: &BTreeMap<String, String>,
    request: &ExecRequest,
    home: &str,
    id: &str,
) -> BTreeMap<String, String> {
    let mut env = BTreeMap::from([
        ("PATH".to_owned(), DEFAULT_PATH.to_owned()),
        ("HOME".to_owned(), home.to_owned()),
        ("LANG".to_owned(), "C.UTF-8".to_owned()),
        ("DELTABOX_SANDBOX_ID".to_owned(), id.to_owned()),
    ]);
    if request.tty.is_some() {
        env.insert("TERM".into(), "xterm-256color".into());
    }
    env.extend(sandbox.clone());
    env.extend(request.env.clone());
    env
}

/// The command's streams and the caller's ends of them.
fn streams(live: &Live, request: &ExecRequest) -> Result<(Stdio, ExecStdio)> {
    if let Some(WindowSize { rows, cols }) = request.tty {
        return Ok((Stdio::Pty { rows, cols }, ExecStdio::None));
    }
    let pipe =
        || pipe_with(PipeFlags::CLOEXEC).map_err(|error| Error::io("cannot make a pipe", &error.into()));
    let null = || live.open_null();
    if request.detach {
        return Ok((Stdio::Fds([null()?, null()?, null()?]), ExecStdio::None));
    }
    let (stdin, caller_in) = if request.stdin {
        let (read, write) = pipe()?;
        (read, Some(write))
    } else {
        (null()?, None)
    };
    let (out_read, out_write) = pipe()?;
    let (err_read, err_write) = pipe()?;
    let caller = ExecStdio::Pipes {
        stdin: caller_in,
        stdout: out_read,
        stderr: err_read,
    };
    Ok((Stdio::Fds([stdin, out_write, err_write]), caller))
}
