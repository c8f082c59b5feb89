//! Starting commands: what happens in the child between clone and exec.

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::CommandExt;

use deltabox_sys::clone::{
    ForkOptions, Forked, SingleThreaded, close_all_but, close_from_on_exec, exit_now, fork, reset_signals,
    send_signal, unblock_signals,
};
use rustix::fs::{Mode, OFlags, fchmod, fchown, openat};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getpid, ioctl_tiocsctty, set_dumpable_behavior, setrlimit, setsid,
    umask,
};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use rustix::thread::{
    CapabilitySet, CapabilitySets, Gid, Uid, remove_capability_from_bounding_set, set_capabilities,
    set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use super::Init;
use super::furniture::Furniture;
use crate::error::{Context, Failure};
use crate::protocol::{Command, Step};
use crate::seccomp::Filter;

/// What the sandbox's root may do, within its own namespaces: to files of its range of identities, to become other
/// users of the range, to signal them, and to bind low ports. Nothing over mounts, devices, networks, other
/// processes' memory, or the PID namespace.
const ROOT_CAPABILITIES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::NET_BIND_SERVICE);

/// The highest capability number that may exist.
const CAPABILITY_MAX: u32 = 63;

/// A command between clone and exec.
pub(super) struct Starting {
    pub(super) id: u64,
    pub(super) pid: i32,
    pub(super) start: u64,
    /// Says nothing and closes when the program is reached, else says which step failed.
    pub(super) report: OwnedFd,
    fds: Vec<OwnedFd>,
}

pub(super) enum StartReport {
    Running,
    Failed { step: Step, errno: i32 },
}

impl Starting {
    /// The outcome, if it is known.
    pub(super) fn read(&mut self) -> Option<StartReport> {
        let mut record = [0; 16];
        match rustix::io::read(&self.report, &mut record) {
            Ok(0) => Some(StartReport::Running),
            Ok(length) => {
                let decoded = postcard::from_bytes::<(Step, i32)>(&record[..length]).ok();
                let (step, errno) = decoded.unwrap_or((Step::Vanished, libc::EIO));
                Some(StartReport::Failed { step, errno })
            }
            Err(_) => None,
        }
    }

    pub(super) fn take_fds(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.fds)
    }
}

struct Terminal {
    master: OwnedFd,
    slave: OwnedFd,
}

/// Clones a child for `command`. The inner error is the clone's own.
pub(super) fn start(
    init: &Init,
    furniture: &Furniture,
    id: u64,
    start: u64,
    command: &Command,
    fds: Vec<OwnedFd>,
) -> Result<Result<Starting, i32>, Failure> {
    let terminal = command
        .pty
        .map(|size| open_terminal(furniture, size, command))
        .transpose()?;
    if terminal.is_none() && fds.len() != 3 {
        return Err(Failure {
            what: "start a command without three descriptors".into(),
            errno: libc::EINVAL,
        });
    }
    let (report, tell) = pipe_with(PipeFlags::CLOEXEC).inside("make a pipe")?;
    let options = ForkOptions {
        namespaces: 0,
        cgroup: Some(init.run.as_fd()),
        pids: &[],
    };
    match fork(&init.proof, &options) {
        Ok(Forked::Child) => {
            let (step, error) = become_command(init, furniture, command, terminal.as_ref(), &fds);
            let record =
                postcard::to_stdvec(&(step, error.raw_os_error().unwrap_or(libc::EIO))).unwrap_or_default();
            // If even that fails, init sees the pipe close and an exit status of 127.
            let _ = rustix::io::write(&tell, &record);
            exit_now(127)
        }
        Ok(Forked::Parent { pid, pidfd }) => {
            let mut back = vec![pidfd];
            back.extend(terminal.map(|terminal| terminal.master));
            Ok(Ok(Starting {
                id,
                pid,
                start,
                report,
                fds: back,
            }))
        }
        Err(error) => Ok(Err(error.raw_os_error().unwrap_or(libc::EIO))),
    }
}

/// A pair of the cell's own terminals, the slave belonging to the command's user as after a login.
fn open_terminal(
    furniture: &Furniture,
    (rows, cols): (u16, u16),
    command: &Command,
) -> Result<Terminal, Failure> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master = openat(&furniture.pts, "ptmx", flags, Mode::empty()).inside("open a terminal")?;
    unlockpt(&master).inside("unlock a terminal")?;
    let slave = ioctl_tiocgptpeer(
        &master,
        OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC,
    )
    .inside("open a terminal")?;
    tcsetwinsize(
        &master,
        Winsize {
            ws_row: rows,
            ws_col: cols,
            ws_xpixel: 0,
            ws_ypixel: 0,
        },
    )
    .inside("set the size of a terminal")?;
    fchown(&slave, Some(rustix::fs::Uid::from_raw(command.uid)), None).inside("hand over a terminal")?;
    fchmod(&slave, Mode::from_raw_mode(0o620)).inside("hand over a terminal")?;
    Ok(Terminal { master, slave })
}

/// Returns only if the program could not be reached: in which step, and why.
fn become_command(
    init: &Init,
    furniture: &Furniture,
    command: &Command,
    terminal: Option<&Terminal>,
    fds: &[OwnedFd],
) -> (Step, std::io::Error) {
    match prepare(init, furniture, command, terminal, fds) {
        Ok(()) => (Step::Program, execute(command)),
        Err(failed) => failed,
    }
}

fn prepare(
    init: &Init,
    furniture: &Furniture,
    command: &Command,
    terminal: Option<&Terminal>,
    fds: &[OwnedFd],
) -> Result<(), (Step, std::io::Error)> {
    let at = |step: Step| move |error: rustix::io::Errno| (step, std::io::Error::from(error));
    if let Some(score) = init.oom_score_adj {
        become_likelier_victim(furniture, score).map_err(|e| (Step::OomScore, e))?;
    }
    setsid().map_err(at(Step::Session))?;
    // Init blocks SIGCHLD for itself. Dispositions are the default ones since the spawner started.
    unblock_signals().map_err(|e| (Step::Session, e))?;
    match terminal {
        Some(terminal) => {
            ioctl_tiocsctty(&terminal.slave).map_err(at(Step::Session))?;
            let slave = terminal.slave.as_fd();
            connect([slave, slave, slave]).map_err(at(Step::Stdio))?;
        }
        None => connect([fds[0].as_fd(), fds[1].as_fd(), fds[2].as_fd()]).map_err(at(Step::Stdio))?,
    }
    for (resource, soft, hard) in &command.rlimits {
        let resource =
            resource_of(*resource).ok_or((Step::Rlimits, std::io::Error::from_raw_os_error(libc::EINVAL)))?;
        setrlimit(
            resource,
            Rlimit {
                current: *soft,
                maximum: *hard,
            },
        )
        .map_err(at(Step::Rlimits))?;
    }
    umask(Mode::from_raw_mode(command.umask));
    limit_bounding_set().map_err(at(Step::Capabilities))?;
    take_identity(command).map_err(at(Step::Credentials))?;
    rustix::process::chdir(command.cwd.as_slice()).map_err(at(Step::WorkingDirectory))?;
    close_from_on_exec(3).map_err(|e| (Step::Descriptors, e))?;
    confine(&init.filter).map_err(|e| (Step::Seccomp, e))
}

/// Raises the own `oom_score_adj`. An undumpable process may not open the file, so it is dumpable for a moment. That
/// lets nobody in: it still has all capabilities of the cell, and a tracer must have no fewer (man 2 ptrace).
fn become_likelier_victim(furniture: &Furniture, score: i32) -> std::io::Result<()> {
    set_dumpable_behavior(DumpableBehavior::Dumpable)?;
    crate::files::write(&furniture.proc, "self/oom_score_adj", &score.to_string())?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}

/// Puts the descriptors in places 0, 1 and 2. Theirs are above: init's own 0 to 2 are taken.
fn connect(fds: [std::os::fd::BorrowedFd<'_>; 3]) -> rustix::io::Result<()> {
    rustix::stdio::dup2_stdin(fds[0])?;
    rustix::stdio::dup2_stdout(fds[1])?;
    rustix::stdio::dup2_stderr(fds[2])
}

fn limit_bounding_set() -> rustix::io::Result<()> {
    for number in 0..=CAPABILITY_MAX {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if ROOT_CAPABILITIES.contains(capability) {
            continue;
        }
        match remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // Beyond the last capability of this kernel.
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn take_identity(command: &Command) -> rustix::io::Result<()> {
    let (uid, gid) = (Uid::from_raw(command.uid), Gid::from_raw(command.gid));
    let groups: Vec<Gid> = command.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    set_thread_groups(&groups)?;
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)?;
    let kept = if command.uid == 0 {
        ROOT_CAPABILITIES
    } else {
        CapabilitySet::empty()
    };
    set_capabilities(
        None,
        CapabilitySets {
            effective: kept,
            permitted: kept,
            inheritable: CapabilitySet::empty(),
        },
    )
}

/// The point of no return: after this only exec is left.
fn confine(filter: &Filter) -> std::io::Result<()> {
    set_no_new_privs(true)?;
    filter.install()
}

/// `execvp` with the command's environment.
fn execute(command: &Command) -> std::io::Error {
    let os = |bytes: &Vec<u8>| OsString::from_vec(bytes.clone());
    let Some((program, arguments)) = command.argv.split_first() else {
        return std::io::Error::from_raw_os_error(libc::EINVAL);
    };
    std::process::Command::new(os(program))
        .args(arguments.iter().map(os))
        .env_clear()
        .envs(command.env.iter().map(|(key, value)| (os(key), os(value))))
        .exec()
}

fn resource_of(number: u32) -> Option<Resource> {
    let all = [
        (libc::RLIMIT_CPU, Resource::Cpu),
        (libc::RLIMIT_FSIZE, Resource::Fsize),
        (libc::RLIMIT_DATA, Resource::Data),
        (libc::RLIMIT_STACK, Resource::Stack),
        (libc::RLIMIT_CORE, Resource::Core),
        (libc::RLIMIT_RSS, Resource::Rss),
        (libc::RLIMIT_NPROC, Resource::Nproc),
        (libc::RLIMIT_NOFILE, Resource::Nofile),
        (libc::RLIMIT_MEMLOCK, Resource::Memlock),
        (libc::RLIMIT_AS, Resource::As),
        (libc::RLIMIT_LOCKS, Resource::Locks),
        (libc::RLIMIT_SIGPENDING, Resource::Sigpending),
        (libc::RLIMIT_MSGQUEUE, Resource::Msgqueue),
        (libc::RLIMIT_NICE, Resource::Nice),
        (libc::RLIMIT_RTPRIO, Resource::Rtprio),
        (libc::RLIMIT_RTTIME, Resource::Rttime),
    ];
    all.into_iter()
        .find(|(known, _)| *known == number)
        .map(|(_, resource)| resource)
}

/// A process to be filled from outside: no descriptors, default signals, stopped. With `confine` it also has a
/// command's bounding set, no_new_privs and filters (a tracer can suspend those, PTRACE_O_SUSPEND_SECCOMP).
pub(super) fn be_skeleton(proof: &SingleThreaded, confined: bool, filter: &Filter) -> i32 {
    if reset_signals().is_err() || close_all_but(proof, 0, &[]).is_err() {
        return 126;
    }
    if confined && (limit_bounding_set().is_err() || confine(filter).is_err()) {
        return 126;
    }
    let own = getpid().as_raw_nonzero().get();
    // It is continued only by being killed, or by a tracer that has taken over.
    let _ = send_signal(own, libc::SIGSTOP);
    0
}
