//! What a process has to do itself once its table is right: taking locks, opening `/dev/tty`, and asking for signals; and
//! what it need not do any more.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::{PidfdGetfdFlags, pidfd_getfd};

use super::borrow;
use super::edit::{self, Destination, Edit, Install};
use super::error::{Error, making};
use super::live::LiveProcess;
use super::lock::{self, OfDescription};
use super::matching::{ASYNC, SETTABLE};
use super::restore::Restore;
use super::tables::{Description, Kind, Table};
use super::tcp::Role;
use crate::inject::{Arg, Batch};
use crate::stop::Process;

fn act(table: &Table, what: &'static str, source: Errno) -> Error {
    Error::Act {
        process: table.process,
        what,
        source: source.into(),
    }
}

/// `struct flock`.
fn flock(kind: i32, start: i64, len: i64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(32);
    bytes.extend_from_slice(&(kind as i16).to_ne_bytes());
    bytes.extend_from_slice(&(libc::SEEK_SET as i16).to_ne_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&start.to_ne_bytes());
    bytes.extend_from_slice(&len.to_ne_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes
}

/// Makes every process hold exactly the POSIX locks it held. Closing any descriptor of a file drops all of the
/// process's locks on it, so this comes last; all releases come before the first lock is taken.
pub(super) fn posix_locks(restore: &Restore<'_>, processes: &mut [Process]) -> Result<(), Error> {
    let mut takers = Vec::new();
    for table in &restore.wanted.processes {
        let Some(live) = restore.live.process(table.process) else {
            continue;
        };
        let held = lock::of_process(&live.posix_locks);
        if held.is_empty() && table.locks.is_empty() {
            continue;
        }
        if held != table.locks {
            release(restore, processes, table, live, &held)?;
        }
        takers.push(table);
    }
    for table in takers {
        take(processes, table)?;
    }
    Ok(())
}

/// The first process that has a description, and under which number.
fn holder<'r>(restore: &Restore<'r>, wanted: usize) -> Option<(&'r Table, i32)> {
    restore.wanted.processes.iter().find_map(|table| {
        let slot = table
            .slots
            .iter()
            .find(|slot| slot.description as usize == wanted)?;
        Some((table, slot.fd))
    })
}

/// Has the lock of flock(2) that belongs to a description, if it does not hold it, taken by who took it before, whether
/// that process still has the description or not.
pub(super) fn flocks(restore: &Restore<'_>, processes: &mut [Process]) -> Result<(), Error> {
    for (wanted, description) in restore.wanted.descriptions.iter().enumerate() {
        let flock = description.locks.iter().find_map(|lock| match *lock {
            OfDescription::Flock { exclusive, taker } => Some((exclusive, taker)),
            OfDescription::Range { .. } => None,
        });
        let held = restore.kept[wanted].is_some_and(|live| restore.live.locks(live) == description.locks);
        let Some((exclusive, taker)) = flock.filter(|_| !held) else {
            continue;
        };
        let Some(table) = taker.and_then(|taker| restore.wanted.process(taker)) else {
            lock::flock(restore.object(wanted)?, exclusive).map_err(making(restore.show(wanted)))?;
            continue;
        };
        let process = find(processes, table)?;
        let take = |process: &mut Process, fd: i32| {
            let mode = if exclusive { libc::LOCK_EX } else { libc::LOCK_SH };
            borrow::call(process, "take the lock of a file again", |batch| {
                batch.call(libc::SYS_flock, &[Arg::from(fd), Arg::from(mode | libc::LOCK_NB)])
            })
        };
        match descriptor_of(restore, table, wanted) {
            Some(fd) => take(process, fd)?,
            None => borrow::with_object(process, restore.object(wanted)?, None, take)?,
        };
    }
    Ok(())
}

/// A thread that was in the middle of connecting a TCP socket, with the connection made already, has done so: called again
/// for a socket that is connected since it was made, `connect` would say just that (`EISCONN`).
pub(super) fn connects(restore: &Restore<'_>, processes: &mut [Process]) -> Result<(), Error> {
    /// `-ERESTARTSYS` (include/linux/errno.h).
    const RESTARTS: i64 = -512;
    for (wanted, description) in restore.wanted.descriptions.iter().enumerate() {
        let connected =
            matches!(&description.kind, Kind::Tcp(state) if matches!(state.role, Role::Connected(_)));
        if !connected || restore.made[wanted].is_none() {
            continue;
        }
        for table in &restore.wanted.processes {
            let Some(fd) = descriptor_of(restore, table, wanted) else {
                continue;
            };
            let process = find(processes, table)?;
            for thread in &mut process.threads {
                let regs = &mut thread.tracee.context_mut()?.regs;
                let connects = regs.orig_rax == libc::SYS_connect.cast_unsigned() && regs.rdi as i32 == fd;
                if connects && regs.rax.cast_signed() == RESTARTS {
                    regs.rax = 0;
                }
            }
        }
    }
    Ok(())
}

/// Under which number a process has a description.
fn descriptor_of(restore: &Restore<'_>, table: &Table, wanted: usize) -> Option<i32> {
    let owner = table.shared_with.and_then(|other| restore.wanted.process(other));
    let mut slots = owner.unwrap_or(table).slots.iter();
    let slot = slots.find(|slot| slot.description as usize == wanted)?;
    Some(slot.fd)
}

/// Has a holder of each description in asynchronous mode switch that on: the descriptor it names shows in the signals
/// (`si_fd`), and it may send them with the rights of who asked for them.
pub(super) fn owners(restore: &Restore<'_>, processes: &mut [Process]) -> Result<(), Error> {
    for (position, wanted) in restore.wanted.descriptions.iter().enumerate() {
        if wanted.flags & ASYNC == 0 || matches!(wanted.kind, Kind::Path(_)) {
            continue;
        }
        if let Some(live) = restore.kept[position]
            && restore.live.descriptions[live].flags & ASYNC != 0
            && restore.live.owner(live)? == wanted.owner
        {
            continue;
        }
        // What is only queued in a socket has no descriptor to show.
        if let Some((table, fd)) = holder(restore, position) {
            ask_for_signals(find(processes, table)?, table, fd, wanted)?;
        }
    }
    Ok(())
}

fn ask_for_signals(process: &mut Process, table: &Table, fd: i32, wanted: &Description) -> Result<(), Error> {
    // include/uapi/asm-generic/fcntl.h
    const SETSIG: i32 = 10;
    const SETOWN_EX: i32 = 15;
    let mut batch = Batch::new();
    let (kind, number_of, signal) = wanted.owner.map_or((0, 0, 0), |o| (o.kind, o.number.0, o.signal));
    let owner = batch.input(&[kind.to_ne_bytes(), number_of.to_ne_bytes()].concat());
    // It may be gone by now: then there is nobody to send signals to, now as then.
    batch.call(
        libc::SYS_fcntl,
        &[Arg::from(fd), Arg::from(SETOWN_EX), owner.into()],
    );
    let signal = batch.call(
        libc::SYS_fcntl,
        &[Arg::from(fd), Arg::from(SETSIG), Arg::from(signal)],
    );
    let flags = (wanted.flags & SETTABLE).cast_signed();
    // Off first: it may be on by another descriptor.
    batch.call(
        libc::SYS_fcntl,
        &[
            Arg::from(fd),
            Arg::from(libc::F_SETFL),
            Arg::from(flags & !libc::O_ASYNC),
        ],
    );
    let on = batch.call(
        libc::SYS_fcntl,
        &[Arg::from(fd), Arg::from(libc::F_SETFL), Arg::from(flags)],
    );
    process.run(&mut batch)?;
    for call in [signal, on] {
        batch
            .result(call)
            .map_err(|e| act(table, "ask for the signals of a descriptor again", e))?;
    }
    Ok(())
}

fn find<'p>(processes: &'p mut [Process], table: &Table) -> Result<&'p mut Process, Error> {
    let found = processes.iter_mut().find(|p| p.inside() == table.process);
    found.ok_or(Error::Missing {
        process: table.process,
    })
}

/// Releases through descriptors that are still open; those of closed ones are gone with them.
fn release(
    restore: &Restore<'_>,
    processes: &mut [Process],
    table: &Table,
    live: &LiveProcess,
    held: &[lock::Posix],
) -> Result<(), Error> {
    let mut batch = Batch::new();
    let descriptors: BTreeSet<i32> = held.iter().map(|l| l.fd).collect();
    for fd in descriptors {
        let kept = table.slots.iter().any(|slot| {
            slot.fd == fd
                && restore.kept[slot.description as usize].is_some_and(|kept| {
                    live.slots
                        .iter()
                        .any(|now| now.fd == fd && now.description == kept)
                })
        });
        if kept {
            let all = batch.input(&flock(libc::F_UNLCK, 0, 0));
            batch.call(
                libc::SYS_fcntl,
                &[Arg::from(fd), Arg::from(libc::F_SETLK), all.into()],
            );
        }
    }
    let process = find(processes, table)?;
    process.run(&mut batch)?;
    match batch.first_error() {
        Some((_, e)) => Err(act(table, "release its file locks", e)),
        None => Ok(()),
    }
}

fn take(processes: &mut [Process], table: &Table) -> Result<(), Error> {
    let mut batch = Batch::new();
    for lock in &table.locks {
        let kind = if lock.exclusive {
            libc::F_WRLCK
        } else {
            libc::F_RDLCK
        };
        let range = batch.input(&flock(kind, lock.start, lock.len));
        batch.call(
            libc::SYS_fcntl,
            &[Arg::from(lock.fd), Arg::from(libc::F_SETLK), range.into()],
        );
    }
    find(processes, table)?.run(&mut batch)?;
    match batch.first_error() {
        Some((_, e)) => Err(act(table, "take its file locks again", e)),
        None => Ok(()),
    }
}

/// Opens `/dev/tty` in the processes that had it open, for descriptions that no process kept.
pub(super) fn of_opener(restore: &mut Restore<'_>, processes: &mut [Process]) -> Result<(), Error> {
    for wanted in 0..restore.wanted.descriptions.len() {
        let description = &restore.wanted.descriptions[wanted];
        let missing = restore.kept[wanted].is_none() && restore.made[wanted].is_none();
        if !missing || !matches!(&description.kind, Kind::CharDevice(s) if s.of_opener) {
            continue;
        }
        let holders: Vec<&Table> = restore
            .wanted
            .processes
            .iter()
            .filter(|t| t.slots.iter().any(|s| s.description as usize == wanted))
            .collect();
        let mut opened: Option<OwnedFd> = None;
        for table in &holders {
            if opened.is_none() {
                opened = Some(open_terminal(
                    restore,
                    find(processes, table)?,
                    table,
                    description.flags,
                )?);
            }
        }
        let Some(opened) = opened else { continue };
        for table in holders {
            install(restore, find(processes, table)?, table, wanted, &opened)?;
        }
        restore.made[wanted] = Some(opened);
    }
    Ok(())
}

fn open_terminal(
    restore: &Restore<'_>,
    process: &mut Process,
    table: &Table,
    flags: u32,
) -> Result<OwnedFd, Error> {
    let mut batch = Batch::new();
    let path = batch.input_str(b"/dev/tty");
    let flags = (flags | libc::O_CLOEXEC as u32 | libc::O_NOCTTY as u32) as i32;
    let open = batch.call(
        libc::SYS_openat,
        &[Arg::from(libc::AT_FDCWD), path.into(), Arg::from(flags)],
    );
    process.run(&mut batch)?;
    let fd = batch
        .result(open)
        .map_err(|e| act(table, "open its controlling terminal again", e))? as i32;
    let live = restore.live.process(table.process).ok_or(Error::Missing {
        process: table.process,
    })?;
    let pulled = pidfd_getfd(live.pidfd.as_fd(), fd, PidfdGetfdFlags::empty())
        .map_err(|e| act(table, "hand out its controlling terminal", e));
    let mut batch = Batch::new();
    batch.call(libc::SYS_close, &[Arg::from(fd)]);
    process.run(&mut batch)?;
    pulled
}

/// Puts one more description into a table that is otherwise right.
fn install(
    restore: &Restore<'_>,
    process: &mut Process,
    table: &Table,
    wanted: usize,
    object: &OwnedFd,
) -> Result<(), Error> {
    let live = restore.live.process(table.process).ok_or(Error::Missing {
        process: table.process,
    })?;
    let of_it = |s: &&super::tables::Slot| s.description as usize == wanted;
    let slots: Vec<_> = table
        .slots
        .iter()
        .filter(of_it)
        .map(|s| (s.fd, s.close_on_exec))
        .collect();
    let mut open: BTreeSet<i32> = table.slots.iter().map(|s| s.fd).collect();
    for (fd, _) in &slots {
        open.remove(fd);
    }
    let plan = Edit {
        wanted: table.slots.iter().map(|s| s.fd).collect(),
        open,
        install: vec![Install {
            object: object.as_fd(),
            place: Destination::Slots(slots),
        }],
        ..Edit::default()
    };
    edit::apply(process, live.pidfd.as_fd(), plan)
}
