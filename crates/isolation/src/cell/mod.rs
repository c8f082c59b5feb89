//! The owner's handle to a cell.

mod types;

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{Gid, Mode, OFlags, Uid, fchown, fstatfs, open};
use rustix::process::{Signal, pidfd_send_signal};

pub use types::{Bind, Event, ExecSpec, ExitStatus, KillTarget, RootSpec, SkeletonSpec, Started, Stdio};

use crate::cgroup::{Cgroup, Limits, Stats};
use crate::error::{Context, Error, Result};
use crate::protocol::{Answer, Command, ExitNotice, Order, Reply, Request, Step};
use crate::spawner::{CellSpec, UIDS_PER_CELL, wait_readable};
use crate::wire::Channel;

/// How long init may take for an answer. Starting a program may wait for the disk.
const ANSWER_WAIT: Duration = Duration::from_secs(30);
/// How long killed processes may take to vanish.
const KILL_WAIT: Duration = Duration::from_secs(10);
/// `f_type` of pipes that have no name (PIPEFS_MAGIC in linux/magic.h).
const PIPEFS_MAGIC: i64 = 0x5049_5045;

/// The namespaces, the cgroups and init of one sandbox. Dropping it ends them; [`Cell::destroy`] also tells whether
/// that worked.
#[derive(Debug)]
pub struct Cell {
    id: String,
    uid_base: u32,
    init_pid: i32,
    pidfd: OwnedFd,
    cgroup: Cgroup,
    requests: Mutex<Conversation>,
    events: Channel,
    root: Mutex<Option<OwnedFd>>,
    destroyed: bool,
}

#[derive(Debug)]
struct Conversation {
    channel: Channel,
    last_id: u64,
}

impl Cell {
    pub(crate) fn new(
        spec: &CellSpec,
        init_pid: i32,
        pidfd: OwnedFd,
        cgroup: Cgroup,
        requests: Channel,
        events: Channel,
    ) -> Self {
        Self {
            id: spec.id.clone(),
            uid_base: spec.uid_base,
            init_pid,
            pidfd,
            cgroup,
            requests: Mutex::new(Conversation {
                channel: requests,
                last_id: 0,
            }),
            events,
            root: Mutex::new(None),
            destroyed: false,
        }
    }

    /// Brings init up. The identity maps are written.
    pub(crate) fn boot(&self, limits: &Limits) -> Result<()> {
        self.cgroup.adopt_v1(self.init_pid)?;
        self.ask(Order::Boot, &[], "make its namespaces habitable")?;
        self.cgroup.adopt_v2(self.init_pid)?;
        self.cgroup.set_limits(limits)
    }

    /// The name it was made with.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// First id, outside, of the cell's users and groups.
    pub fn uid_base(&self) -> u32 {
        self.uid_base
    }

    /// PID of init in the owner's PID namespace.
    pub fn init_pid(&self) -> i32 {
        self.init_pid
    }

    /// Init. Becomes readable when the cell has died.
    pub fn init_pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Its cgroups: freezing, killing, listing, accounting.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Changes the limits.
    pub fn set_limits(&self, limits: &Limits) -> Result<()> {
        self.cgroup.set_limits(limits)
    }

    /// What it uses.
    pub fn stats(&self) -> Result<Stats> {
        self.cgroup.stats()
    }

    /// Opens a namespace of the cell: `user`, `mnt`, `pid`, `net`, `ipc`, `uts`, `cgroup`, `time_for_children`, ...
    pub fn namespace(&self, kind: &str) -> Result<OwnedFd> {
        let path = format!("/proc/{}/ns/{kind}", self.init_pid);
        open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .context(format!("open the cell's {kind} namespace"))
    }

    /// The root that is attached, as a descriptor for looking things up in it (`openat2` with `RESOLVE_IN_ROOT`).
    pub fn root(&self) -> Result<OwnedFd> {
        let root = self.root.lock().unwrap_or_else(PoisonError::into_inner);
        let root = root
            .as_ref()
            .ok_or_else(|| Error::Invalid("the sandbox has no root yet".into()))?;
        root.try_clone().context("duplicate a descriptor")
    }

    /// Makes `mount`, a detached mount, the root of the cell. /proc, /sys and /dev are mounted in it, and /run/shm is
    /// made if it is not there, through the mount, so in its upper layer.
    pub fn attach_root(&self, mount: OwnedFd, spec: RootSpec) -> Result<()> {
        let mut fds = vec![mount.as_fd()];
        fds.extend(spec.binds.iter().map(|bind| bind.mount.as_fd()));
        let targets = spec.binds.iter().map(|bind| bind.target.clone()).collect();
        let order = Order::Root {
            hostname: spec.hostname,
            binds: Some(targets),
        };
        self.ask(order, &fds, "attach a root")?;
        self.set_root(mount);
        self.ask(Order::DropOldRoot, &[], "let go of the old root")
            .map(drop)
    }

    /// Puts `mount` in the place of the root, for init and for every process whose root or working directory is the
    /// old root itself; other descriptors and working directories stay on the old mount, which lives as long as they
    /// do. Mounts inside the root move along. The processes should be stopped: for a moment /proc, /sys and /dev are
    /// missing. The old mount is given back; its last reference is slow to drop (the kernel drops its caches), so
    /// drop it where nobody waits.
    pub fn switch_root(&self, mount: OwnedFd) -> Result<Option<OwnedFd>> {
        self.ask(
            Order::Root {
                hostname: None,
                binds: None,
            },
            &[mount.as_fd()],
            "switch the root",
        )?;
        let old = self.set_root(mount);
        self.tell_drop_old_root()?;
        Ok(old)
    }

    fn set_root(&self, mount: OwnedFd) -> Option<OwnedFd> {
        self.root
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .replace(mount)
    }

    /// Without waiting for the answer, which the next conversation will skip.
    fn tell_drop_old_root(&self) -> Result<()> {
        let mut conversation = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        conversation.last_id += 1;
        let request = Request {
            id: conversation.last_id,
            order: Order::DropOldRoot,
        };
        conversation.channel.send(&request, &[]).map_err(|_| Error::Gone {
            who: "sandbox's init",
        })
    }

    /// Sets the name of the machine, as programs see it.
    pub fn set_hostname(&self, name: &str) -> Result<()> {
        self.ask(Order::Hostname(name.to_owned()), &[], "set the hostname")
            .map(drop)
    }

    /// Gives the processes started from now on their own time namespace, whose monotonic and boot clocks are shifted
    /// by these nanoseconds. Only before the first process.
    pub fn set_clock_offsets(&self, monotonic_ns: i64, boottime_ns: i64) -> Result<()> {
        const SECOND: i64 = 1_000_000_000;
        self.ask(Order::OwnTime, &[], "make a time namespace")?;
        let line =
            |clock: &str, ns: i64| format!("{clock} {} {}\n", ns.div_euclid(SECOND), ns.rem_euclid(SECOND));
        let offsets = line("monotonic", monotonic_ns) + &line("boottime", boottime_ns);
        std::fs::write(format!("/proc/{}/timens_offsets", self.init_pid), offsets)
            .context("set the clocks' offsets")
    }

    /// Starts a command. Returns when the program is reached.
    ///
    /// Errors: [`Error::ProgramNotFound`], [`Error::ProgramNotRunnable`], [`Error::WorkingDirectory`],
    /// [`Error::ProcessLimit`], and those of a broken cell.
    pub fn exec(&self, spec: ExecSpec) -> Result<Started> {
        if spec.argv.is_empty() {
            return Err(Error::Invalid("a command needs at least a program".into()));
        }
        if spec.uid >= UIDS_PER_CELL || spec.gid >= UIDS_PER_CELL {
            return Err(Error::Invalid(format!(
                "user and group ids in a sandbox are below {UIDS_PER_CELL}"
            )));
        }
        let program = spec.argv[0].to_string_lossy().into_owned();
        let cwd = spec.cwd.to_string_lossy().into_owned();
        let (pty, stdio) = match spec.stdio {
            Stdio::Fds(fds) => (None, Some(fds)),
            Stdio::Pty { rows, cols } => (Some((rows, cols)), None),
        };
        let fds: Vec<BorrowedFd<'_>> = stdio.iter().flatten().map(AsFd::as_fd).collect();
        for fd in &fds {
            self.hand_over_pipe(*fd, spec.uid, spec.gid)?;
        }
        let command = Command {
            argv: spec.argv.into_iter().map(OsString::into_vec).collect(),
            env: spec
                .env
                .into_iter()
                .map(|(key, value)| (key.into_vec(), value.into_vec()))
                .collect(),
            cwd: spec.cwd.into_vec(),
            uid: spec.uid,
            gid: spec.gid,
            groups: spec.groups,
            umask: spec.umask,
            rlimits: spec.rlimits,
            pty,
        };
        match self.ask(Order::Exec(Box::new(command)), &fds, "start a command")? {
            (Answer::Started { pid, start }, fds) => started(pid, start, fds),
            (Answer::NotStarted { step, errno }, _) => Err(not_started(step, errno, program, cwd)),
            _ => Err(unexpected()),
        }
    }

    /// A pipe belongs to whoever made it, so a command could not open it again by name (`/dev/stdout`).
    fn hand_over_pipe(&self, fd: BorrowedFd<'_>, uid: u32, gid: u32) -> Result<()> {
        if fstatfs(fd).context("look at a descriptor")?.f_type as i64 != PIPEFS_MAGIC {
            return Ok(());
        }
        let (uid, gid) = (
            Uid::from_raw(self.uid_base + uid),
            Gid::from_raw(self.uid_base + gid),
        );
        fchown(fd, Some(uid), Some(gid)).context("hand over a pipe")
    }

    /// Clones a child of init that has no descriptors and has stopped itself, for a tracer to take over.
    pub fn skeleton(&self, spec: &SkeletonSpec) -> Result<Started> {
        let order = Order::Skeleton {
            pid: spec.pid_inside,
            confine: spec.confine,
        };
        match self.ask(order, &[], "make a process")? {
            (Answer::Started { pid, start }, fds) => started(pid, start, fds),
            (
                Answer::NotStarted {
                    errno: libc::EEXIST, ..
                },
                _,
            ) => Err(Error::PidTaken {
                pid: spec.pid_inside.unwrap_or(0),
            }),
            (Answer::NotStarted { step, errno }, _) => {
                Err(not_started(step, errno, "an empty process".into(), String::new()))
            }
            _ => Err(unexpected()),
        }
    }

    /// Makes the next process of the cell get the PID after `last` (`ns_last_pid`), if that is free. Everything that
    /// could fork must be stopped.
    pub fn set_last_pid(&self, last: i32) -> Result<()> {
        self.ask(Order::SetLastPid(last), &[], "set the last pid")
            .map(drop)
    }

    /// Sends a signal to processes of the cell, never to init.
    pub fn signal(&self, target: KillTarget, signal: i32) -> Result<()> {
        let (pid, group) = match target {
            KillTarget::Process(pid) => (pid, false),
            KillTarget::Group(pid) => (pid, true),
        };
        self.ask(Order::Signal { pid, group, signal }, &[], "send a signal")
            .map(drop)
    }

    /// Keeps init from collecting this child when it has ended, or lets it again.
    pub fn hold_zombie(&self, pid_inside: i32, hold: bool) -> Result<()> {
        self.ask(
            Order::HoldZombie {
                pid: pid_inside,
                hold,
            },
            &[],
            "keep a zombie",
        )
        .map(drop)
    }

    /// Asks init for a sign of life.
    pub fn ping(&self) -> Result<()> {
        self.ask(Order::Ping, &[], "answer").map(drop)
    }

    /// Becomes readable when [`Self::poll_events`] has something, or when init has died.
    pub fn event_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    /// Takes the news that have arrived, without waiting.
    ///
    /// Errors: [`Error::Gone`] when init has died and all its news are taken.
    pub fn poll_events(&self) -> Result<Vec<Event>> {
        let mut events = Vec::new();
        loop {
            match self.events.try_receive::<ExitNotice>() {
                Ok(Some((notice, _))) => events.push(event(notice)),
                Ok(None) if events.is_empty() => {
                    return Err(Error::Gone {
                        who: "sandbox's init",
                    });
                }
                Ok(None) => return Ok(events),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(events),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {
                    return if events.is_empty() {
                        Err(Error::Gone {
                            who: "sandbox's init",
                        })
                    } else {
                        Ok(events)
                    };
                }
                Err(error) => return Err(error).context("hear from the sandbox's init"),
            }
        }
    }

    /// Kills every process but init, frozen ones too, and waits until they are gone and collected.
    pub fn kill_all(&self) -> Result<()> {
        self.ask(Order::KillAll, &[], "kill the sandbox's processes")?;
        self.cgroup.wait_empty(KILL_WAIT)?;
        // A process leaves its cgroup a moment before it can be collected, and counts against limits until then.
        let end = Instant::now() + KILL_WAIT;
        while Instant::now() < end {
            if let (Answer::Children(0), _) = self.ask(Order::CountChildren, &[], "collect dead processes")? {
                return Ok(());
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        Err(Error::Left {
            what: format!("a killed process of {}", self.id),
            seconds: KILL_WAIT.as_secs(),
        })
    }

    /// Ends the cell. Afterwards no process, mount, cgroup or namespace of it is left, except what descriptors held
    /// by the owner keep alive.
    pub fn destroy(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        if self.destroyed {
            return Ok(());
        }
        self.destroyed = true;
        // With init die all processes of its PID namespace, and init is gone only after them.
        match pidfd_send_signal(&self.pidfd, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error).context("kill the sandbox's init"),
        }
        // Processes that someone froze must run to die, which cgroup.kill does.
        self.cgroup.kill_for_good()?;
        wait_readable(&self.pidfd, KILL_WAIT, "sandbox's init", "end")?;
        self.cgroup.remove()
    }

    /// One order and its answer; answers to older orders are skipped.
    fn ask(
        &self,
        order: Order,
        fds: &[BorrowedFd<'_>],
        what: &'static str,
    ) -> Result<(Answer, Vec<OwnedFd>)> {
        const WHO: &str = "sandbox's init";
        let mut conversation = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        conversation.last_id += 1;
        let id = conversation.last_id;
        conversation
            .channel
            .send(&Request { id, order }, fds)
            .map_err(|error| match error.raw_os_error() {
                Some(libc::E2BIG) => {
                    Error::Invalid("too many arguments, variables or descriptors at once".into())
                }
                _ => Error::Gone { who: WHO },
            })?;
        loop {
            wait_readable(&conversation.channel, ANSWER_WAIT, WHO, what)?;
            match conversation.channel.receive::<Reply>() {
                Ok(Some((Reply { id: answered, answer }, fds))) if answered == id => {
                    return match answer {
                        Answer::Failed(failure) => Err(failure.into()),
                        answer => Ok((answer, fds)),
                    };
                }
                // The answer to an order whose time had run out: what it started is not wanted any more.
                Ok(Some((
                    Reply {
                        answer: Answer::Started { .. },
                        ..
                    },
                    fds,
                ))) => {
                    if let Some(pidfd) = fds.first() {
                        let _ = pidfd_send_signal(pidfd, Signal::KILL);
                    }
                }
                Ok(Some(_)) => {}
                Ok(None) => return Err(Error::Gone { who: WHO }),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {
                    return Err(Error::Gone { who: WHO });
                }
                Err(error) => return Err(error).context("hear from the sandbox's init"),
            }
        }
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::warn!(cell = self.id, %error, "a cell could not be ended");
        }
    }
}

fn started(pid_inside: i32, start: u64, mut fds: Vec<OwnedFd>) -> Result<Started> {
    if fds.is_empty() {
        return Err(unexpected());
    }
    let pidfd = fds.remove(0);
    let pid = pid_of(&pidfd)?;
    Ok(Started {
        pid,
        pid_inside,
        start,
        pidfd,
        pty_master: fds.pop(),
    })
}

/// PID of a process in the PID namespace of the mounted procfs (man 2 pidfd_open, "fdinfo").
fn pid_of(pidfd: &OwnedFd) -> Result<i32> {
    use std::os::fd::AsRawFd;
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))
        .context("look at a process descriptor")?;
    let fields: HashMap<&str, &str> = info.lines().filter_map(|line| line.split_once(':')).collect();
    fields
        .get("Pid")
        .and_then(|pid| pid.trim().parse().ok())
        .ok_or_else(|| Error::Invalid("a process descriptor without a PID".into()))
}

fn not_started(step: Step, errno: i32, program: String, cwd: String) -> Error {
    let source = std::io::Error::from_raw_os_error(errno);
    match (step, errno) {
        (Step::Fork, libc::EAGAIN | libc::ENOMEM) => Error::ProcessLimit,
        (Step::Program, libc::ENOENT) => Error::ProgramNotFound { program },
        (Step::Program, _) => Error::ProgramNotRunnable { program, source },
        (Step::WorkingDirectory, _) => Error::WorkingDirectory { cwd, source },
        (step, _) => Error::System {
            what: format!("start {program} (step {step:?})"),
            source,
        },
    }
}

fn event(notice: ExitNotice) -> Event {
    let status = if notice.signalled {
        ExitStatus::Signal {
            signal: notice.code,
            core: notice.core,
        }
    } else {
        ExitStatus::Code(notice.code)
    };
    let start = (notice.start != 0).then_some(notice.start);
    Event::Exited {
        pid_inside: notice.pid,
        start,
        status,
    }
}

fn unexpected() -> Error {
    Error::Invalid("the sandbox's init answered something else than was asked".into())
}
