//! Making processes that are not there (any more), with the right pid, parent, session and program.
//!
//! A new process is cloned by whoever has to be its parent, without copying any memory (`CLONE_VM`), and calls `execve`
//! on the program it was before its first instruction. That gives it an address space of its own and the right link
//! in `/proc/PID/exe`. What the program's loader would do never happens: the process is stopped at its first
//! instruction, and from there it is changed like any other live process, only that everything differs.
//!
//! `execve` ends what a process has in common with its maker, and lets its end be told by `SIGCHLD`. A child that runs
//! its parent's program and needs otherwise is forked, and does without.

use rustix::io::Errno;
use rustix::process::{Signal, kill_process};

use crate::error::TraceError;
use crate::host::Host;
use crate::ids::{HostPid, InsidePid};
use crate::image::{Image, ProcessImage, ZombieImage};
use crate::inject::Batch;
use crate::plan::{Birth, By};
use crate::process::OPTIONS;
use crate::restore::RestoreError;
use crate::stop::{Process, STOP_LIMIT, StopError, Tree};
use crate::tracee::Tracee;

/// Makes one process of the plan, ready to be filled.
pub fn birth<H: Host + ?Sized>(
    host: &mut H,
    tree: &mut Tree,
    birth: &Birth,
    image: &Image,
) -> Result<(), RestoreError> {
    let wanted = image.processes.iter().find(|process| process.pid == birth.pid);
    let exit_signal = wanted.map_or(libc::SIGCHLD, |wanted| wanted.exit_signal);
    let mut process = match birth.by {
        By::Init => from_init(host, birth.pid)?,
        By::Parent(parent) => match fork_flags(parent, birth.pid, image) {
            Some(flags) => from_process(host, tree, parent, birth.pid, flags | exit_signal, None)?,
            None => {
                let flags = libc::CLONE_VM | exit_signal;
                from_process(host, tree, parent, birth.pid, flags, wanted)?
            }
        },
        By::Sibling(sibling) => {
            let flags = libc::CLONE_VM | libc::CLONE_PARENT;
            from_process(host, tree, sibling, birth.pid, flags, wanted)?
        }
        By::Orphan(member) => {
            let between = unused_pid(tree, image);
            let parent = from_process(host, tree, member, between, libc::CLONE_VM | libc::SIGCHLD, None)?;
            tree.processes.push(parent);
            let process = from_process(host, tree, between, birth.pid, libc::CLONE_VM, wanted)?;
            if let Some(parent) = tree.by_inside(between) {
                clear_common(parent)?;
            }
            remove(tree, between)?;
            process
        }
    };
    if birth.leads_session {
        must(&mut process, libc::SYS_setsid, &[], "setsid")?;
    }
    if birth.by == By::Init
        && let Some(wanted) = wanted
    {
        exec_own(&mut process, wanted)?;
    }
    process.refresh()?;
    tree.processes.push(process);
    Ok(())
}

/// An id that nobody has and nobody is to have.
fn unused_pid(tree: &Tree, image: &Image) -> InsidePid {
    let now = tree.processes.iter().flat_map(|process| &process.threads);
    let wanted = image.processes.iter().flat_map(|process| &process.threads);
    let all = now
        .map(|thread| thread.inside)
        .chain(wanted.map(|thread| thread.tid))
        .chain(image.zombies.iter().map(|zombie| zombie.pid));
    InsidePid(all.map(|pid| pid.0).max().unwrap_or(1) + 1)
}

/// Removes injected memory that is its maker's as well, who must not be left with it.
fn clear_common(process: &mut Process) -> Result<(), TraceError> {
    let (injector, threads) = process.injector();
    match threads.first_mut() {
        Some(thread) => injector.clear(&mut thread.tracee),
        None => Ok(()),
    }
}

/// What a child has to be forked with that cannot be had with `execve`.
fn fork_flags(parent: InsidePid, pid: InsidePid, image: &Image) -> Option<i32> {
    let find = |pid| image.processes.iter().find(|process| process.pid == pid);
    let (maker, wanted) = (find(parent)?, find(pid)?);
    let mut tables = image.descriptors.processes.iter();
    let shares_table = tables.any(|table| table.process == pid && table.shared_with == Some(parent));
    let needs = shares_table || wanted.exit_signal != libc::SIGCHLD;
    let flags = if shares_table {
        libc::CLONE_FILES | libc::CLONE_FS
    } else {
        0
    };
    (needs && maker.executable == wanted.executable).then_some(flags)
}

/// Runs a call that has to work.
fn must(
    process: &mut Process,
    number: i64,
    args: &[crate::inject::Arg],
    name: &'static str,
) -> Result<u64, TraceError> {
    let pid = process.pid();
    process
        .call(number, args)?
        .map_err(|errno| TraceError::Call { pid, name, errno })
}

fn from_init<H: Host + ?Sized>(host: &mut H, pid: InsidePid) -> Result<Process, RestoreError> {
    let host_pid = host.skeleton(pid).map_err(|source| StopError::Host {
        what: "have init clone a process in",
        source,
    })?;
    let mut tracee = Tracee::seize(host_pid, OPTIONS)?.ok_or(TraceError::Gone { tid: host_pid })?;
    tracee.interrupt()?;
    if !tracee.wait_stopped(STOP_LIMIT)? {
        return Err(TraceError::Stuck { tid: host_pid }.into());
    }
    // It may have waited for us in a job control stop, which would be there again when it is let go.
    kill_process(host_pid.pid(), Signal::CONT).map_err(|errno| TraceError::Request {
        tid: host_pid,
        what: "continue",
        source: errno.into(),
    })?;
    tracee.forget_group_stop();
    let process = Process::adopt(host_pid, tracee)?;
    if process.inside() != pid {
        return Err(StopError::PidTaken {
            wanted: pid,
            got: process.inside(),
        }
        .into());
    }
    Ok(process)
}

/// Clones from a process of the tree. The new process shares its memory until it calls `execve`, which is done here,
/// unless it is a temporary one.
fn from_process<H: Host + ?Sized>(
    host: &mut H,
    tree: &mut Tree,
    maker: InsidePid,
    pid: InsidePid,
    flags: i32,
    wanted: Option<&std::sync::Arc<ProcessImage>>,
) -> Result<Process, RestoreError> {
    let maker = tree
        .by_inside(maker)
        .ok_or(RestoreError::NoParent { pid, parent: maker })?;
    let mut tracee = maker.clone_task(host, pid, flags)?;
    let host_pid = tracee.tid();
    if let Some(wanted) = wanted {
        let instruction = maker.injector().0.instruction();
        let (injector, threads) = maker.injector();
        let first = threads.first_mut().ok_or(TraceError::Gone { tid: host_pid })?;
        let staged = Arguments::of(wanted);
        let base = injector.stage(&mut first.tracee, &staged.bytes)?;
        let bytes = staged.at(base.0);
        injector.write(base, &bytes)?;
        let args = staged.args(base.0);
        let result = tracee.call(instruction, libc::SYS_execve.cast_unsigned(), args, |_, _| {})?;
        result.map_err(|errno| exec_failed(wanted, errno))?;
        tracee.forget_context();
    }
    Ok(Process::adopt(host_pid, tracee)?)
}

/// A process with memory of its own calls `execve`.
fn exec_own(process: &mut Process, wanted: &ProcessImage) -> Result<(), RestoreError> {
    let (injector, threads) = process.injector();
    let Some(first) = threads.first_mut() else {
        return Ok(());
    };
    let staged = Arguments::of(wanted);
    let base = injector.stage(&mut first.tracee, &staged.bytes)?;
    injector.write(base, &staged.at(base.0))?;
    let result = injector.call_with_events(
        &mut first.tracee,
        libc::SYS_execve,
        staged.args(base.0),
        |_, _| {},
    )?;
    result.map_err(|errno| exec_failed(wanted, errno))?;
    first.tracee.forget_context();
    process.program_changed()?;
    Ok(())
}

fn exec_failed(wanted: &ProcessImage, errno: Errno) -> RestoreError {
    let path = String::from_utf8_lossy(&wanted.executable.path).into_owned();
    RestoreError::Executable {
        pid: wanted.pid,
        path,
        errno,
    }
}

/// What `execve` is given: the path, as its only argument too, and no environment.
struct Arguments {
    bytes: Vec<u8>,
    path: usize,
}

impl Arguments {
    fn of(wanted: &ProcessImage) -> Arguments {
        let mut path = wanted.executable.path.clone();
        path.push(0);
        let length = path.len();
        path.resize(length.next_multiple_of(8), 0);
        let path_size = path.len();
        path.extend_from_slice(&[0; 24]);
        Arguments {
            bytes: path,
            path: path_size,
        }
    }

    /// The bytes for memory at `base`: path, then `{path, null}`, then `{null}`.
    fn at(&self, base: u64) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        bytes[self.path..self.path + 8].copy_from_slice(&base.to_ne_bytes());
        bytes
    }

    fn args(&self, base: u64) -> [u64; 6] {
        [
            base,
            base + self.path as u64,
            base + self.path as u64 + 16,
            0,
            0,
            0,
        ]
    }
}

/// Makes a process that has ended and was not waited for.
pub fn zombie<H: Host + ?Sized>(
    host: &mut H,
    tree: &mut Tree,
    image: &ZombieImage,
) -> Result<(), RestoreError> {
    let parent = tree.by_inside(image.parent).ok_or(RestoreError::NoParent {
        pid: image.pid,
        parent: image.parent,
    })?;
    let tracee = parent.clone_task(host, image.pid, libc::CLONE_VM | libc::SIGCHLD)?;
    let host_pid = tracee.tid();
    let mut process = Process::adopt(host_pid, tracee)?;
    if image.session == image.pid {
        must(&mut process, libc::SYS_setsid, &[], "setsid")?;
    } else if image.group.0 != process.status().group {
        // A group that has ended cannot be entered; the zombie is waited for by its pid or as any child then.
        let _ = process.call(libc::SYS_setpgid, &[0.into(), image.group.0.into()])?;
    }
    let mut batch = Batch::new();
    let mut name = image.name.clone().into_bytes();
    name.resize(16, 0);
    let name = batch.input(&name);
    batch.call(libc::SYS_prctl, &[libc::PR_SET_NAME.into(), name.into()]);
    process.run(&mut batch)?;
    clear_common(&mut process)?;
    process.end(image.status)?;
    Ok(())
}

/// Removes processes that were only needed to make others, and waits for them in their parents.
pub fn remove(tree: &mut Tree, pid: InsidePid) -> Result<(), TraceError> {
    let Some(place) = tree.processes.iter().position(|process| process.inside() == pid) else {
        return Ok(());
    };
    let process = tree.processes.swap_remove(place);
    let parent = process.status().parent;
    process.kill()?;
    reap(tree, parent, pid)
}

/// Has the parent (by its host pid) wait for a child that has ended. Init does so by itself.
pub fn reap(tree: &mut Tree, parent: i32, pid: InsidePid) -> Result<(), TraceError> {
    if let Some(parent) = tree
        .processes
        .iter_mut()
        .find(|process| process.pid().raw() == parent)
    {
        let options = libc::WNOHANG | libc::__WALL;
        // ECHILD: the parent ignores SIGCHLD, so that nothing is left to wait for.
        let _ = parent.call(
            libc::SYS_wait4,
            &[pid.0.into(), 0.into(), options.into(), 0.into()],
        )?;
    }
    Ok(())
}

/// Ends live processes that the image does not have, children before parents, and waits for them.
pub fn kill_all(tree: &mut Tree, pids: &[InsidePid]) -> Result<(), TraceError> {
    let mut ended: Vec<(i32, InsidePid, HostPid)> = Vec::new();
    for &pid in pids {
        if let Some(place) = tree.processes.iter().position(|process| process.inside() == pid) {
            let process = tree.processes.swap_remove(place);
            let (parent, host_pid) = (process.status().parent, process.pid());
            process.kill()?;
            ended.push((parent, pid, host_pid));
        }
    }
    for &(parent, pid, _) in &ended {
        reap(tree, parent, pid)?;
    }
    let start = std::time::Instant::now();
    for &(_, _, host_pid) in &ended {
        while crate::procfs::status(host_pid).is_ok() {
            if start.elapsed() > STOP_LIMIT {
                return Err(TraceError::Stuck { tid: host_pid });
            }
            std::thread::yield_now();
        }
    }
    Ok(())
}

/// Makes a process the leader of a group of its own.
pub fn lead_group(process: &mut Process) -> Result<(), TraceError> {
    must(process, libc::SYS_setpgid, &[0.into(), 0.into()], "setpgid")?;
    process.refresh()
}

/// The group is not what it was, and can be changed.
fn has_to_move(process: &Process, wanted: &ProcessImage) -> bool {
    process.status().group != wanted.group.0 && wanted.session != wanted.pid && wanted.group.0 != 0
}

/// Begins the groups whose leaders are alive.
pub fn group_leaders(tree: &mut Tree, image: &Image) -> Result<(), TraceError> {
    for wanted in image.processes.iter().filter(|wanted| wanted.group == wanted.pid) {
        let process = tree.by_inside(wanted.pid);
        if let Some(process) = process.filter(|process| has_to_move(process, wanted)) {
            lead_group(process)?;
        }
    }
    Ok(())
}

/// Brings processes into their groups. A group whose leader has ended gets a temporary one.
pub fn group_members<H: Host + ?Sized>(
    host: &mut H,
    tree: &mut Tree,
    image: &Image,
) -> Result<(), RestoreError> {
    let mut temporary = Vec::new();
    for wanted in &image.processes {
        let process = tree.by_inside(wanted.pid);
        let Some(process) = process.filter(|process| has_to_move(process, wanted)) else {
            continue;
        };
        let joined = process.call(libc::SYS_setpgid, &[0.into(), wanted.group.0.into()])?;
        if joined.is_err() {
            let tracee = process.clone_task(host, wanted.group, libc::CLONE_VM | libc::SIGCHLD)?;
            let mut leader = Process::adopt(tracee.tid(), tracee)?;
            must(&mut leader, libc::SYS_setpgid, &[0.into(), 0.into()], "setpgid")?;
            clear_common(&mut leader)?;
            tree.processes.push(leader);
            temporary.push(wanted.group);
            let process = tree.by_inside(wanted.pid).ok_or(RestoreError::NoParent {
                pid: wanted.pid,
                parent: wanted.parent,
            })?;
            must(
                process,
                libc::SYS_setpgid,
                &[0.into(), wanted.group.0.into()],
                "setpgid",
            )?;
        }
        if let Some(process) = tree.by_inside(wanted.pid) {
            process.refresh()?;
        }
    }
    for pid in temporary {
        remove(tree, pid)?;
    }
    Ok(())
}
