//! Making the table of one process equal the wanted one.
//!
//! Objects come in over a socket pair that is injected into the process: our side sends them with SCM_RIGHTS, the
//! process receives each at the lowest free number, which is known because the table is known and nothing else
//! runs, and moves it where it belongs. One round trip closes and prepares, a second one receives.

use std::collections::BTreeSet;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{PidfdGetfdFlags, pidfd_getfd};

use super::error::Error;
use crate::ids::InsidePid;
use crate::inject::{Arg, Batch, CallId};
use crate::stop::Process;

/// Something to put into a process.
#[derive(Debug)]
pub(super) struct Install<'a> {
    pub object: BorrowedFd<'a>,
    pub place: Destination,
}

/// Where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Destination {
    /// To these descriptors (number, close-on-exec), all of one description.
    Slots(Vec<(i32, bool)>),
    WorkingDirectory,
    RootDirectory,
}

/// What has to change in one table.
#[derive(Debug, Default)]
pub(super) struct Edit<'a> {
    /// The descriptors open now.
    pub open: BTreeSet<i32>,
    /// Descriptors that are in the wanted table, whether they change or not.
    pub wanted: BTreeSet<i32>,
    pub close: Vec<i32>,
    /// Descriptor and close-on-exec.
    pub mark: Vec<(i32, bool)>,
    pub install: Vec<Install<'a>>,
}

/// The process's end of the pair, and ours.
struct Channel {
    inner: i32,
    ours: OwnedFd,
    /// The other end in the process, to be closed: it was only there to be pulled out.
    spare: i32,
}

const CLOEXEC: i32 = libc::O_CLOEXEC;

/// Applies an edit.
///
/// # Errors
/// When the process does not do what it is asked to; its table is then in between.
pub(super) fn apply(process: &mut Process, pidfd: BorrowedFd<'_>, mut edit: Edit<'_>) -> Result<(), Error> {
    let name = process.inside();
    let mut batch = Batch::new();
    let mut steps: Vec<(CallId, &'static str, Option<i32>)> = Vec::new();
    for &fd in &edit.close {
        // EINTR and EIO of close(2) are about the data; the descriptor is gone in any case.
        batch.call(libc::SYS_close, &[Arg::from(fd)]);
        edit.open.remove(&fd);
    }
    for &(fd, on) in &edit.mark {
        let flag = if on { libc::FD_CLOEXEC } else { 0 };
        let call = batch.call(
            libc::SYS_fcntl,
            &[Arg::from(fd), Arg::from(libc::F_SETFD), Arg::from(flag)],
        );
        steps.push((call, "change close-on-exec", None));
    }
    if edit.install.is_empty() {
        run(process, &mut batch, &steps)?;
        return Ok(());
    }
    let channel = open_channel(process, pidfd, &mut edit, batch, steps)?;
    let mut rest = edit.install.as_slice();
    let mut first = true;
    while !rest.is_empty() || first {
        let sent = send(name, &channel.ours, rest)?;
        let (now, later) = rest.split_at(sent);
        rest = later;
        receive(process, &channel, &mut edit.open, now, first, rest.is_empty())?;
        first = false;
    }
    Ok(())
}

fn lowest(open: &BTreeSet<i32>) -> i32 {
    (0..).find(|fd| !open.contains(fd)).unwrap_or(i32::MAX)
}

/// A number that is neither open nor wanted, for the time of the work.
fn harmless(process: &Process, edit: &Edit<'_>) -> Result<i32, Error> {
    let limit = descriptor_limit(process)?;
    let free = |fd: &i32| !edit.open.contains(fd) && !edit.wanted.contains(fd);
    let above = edit.open.iter().chain(&edit.wanted).max().map_or(0, |m| m + 1);
    if above < limit {
        return Ok(above);
    }
    (0..limit).find(free).ok_or_else(|| {
        act(
            process.inside(),
            "receive descriptors, since its table is full up to its limit",
            Errno::MFILE,
        )
    })
}

/// The process's `RLIMIT_NOFILE`: descriptors are below it.
fn descriptor_limit(process: &Process) -> Result<i32, Error> {
    let failed = |source| Error::Read {
        process: process.inside(),
        what: "its limits",
        source,
    };
    let text = std::fs::read_to_string(format!("/proc/{}/limits", process.pid().raw())).map_err(failed)?;
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix("Max open files"))
        .unwrap_or_default();
    let soft = line
        .split_whitespace()
        .next()
        .and_then(|word| word.parse::<u64>().ok());
    Ok(soft.and_then(|n| i32::try_from(n).ok()).unwrap_or(i32::MAX))
}

fn act(process: InsidePid, what: &'static str, source: Errno) -> Error {
    Error::Act {
        process,
        what,
        source: source.into(),
    }
}

fn run(
    process: &mut Process,
    batch: &mut Batch,
    steps: &[(CallId, &'static str, Option<i32>)],
) -> Result<(), Error> {
    process.run(batch)?;
    for &(call, what, expected) in steps {
        let got = batch.result(call).map_err(|e| act(process.inside(), what, e))?;
        if expected.is_some_and(|number| got != number as u64) {
            let source = std::io::Error::other(format!("a descriptor arrived at {got}, not where expected"));
            return Err(Error::Act {
                process: process.inside(),
                what,
                source,
            });
        }
    }
    Ok(())
}

fn open_channel(
    process: &mut Process,
    pidfd: BorrowedFd<'_>,
    edit: &mut Edit<'_>,
    mut batch: Batch,
    mut steps: Vec<(CallId, &'static str, Option<i32>)>,
) -> Result<Channel, Error> {
    let spare = lowest(&edit.open);
    edit.open.insert(spare);
    // After the spare end was reserved: with a table without gaps the first free number is both.
    let inner = harmless(process, edit)?;
    let second = lowest(&edit.open);
    let pair = batch.output(8);
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    let call = batch.call(
        libc::SYS_socketpair,
        &[
            Arg::from(libc::AF_UNIX),
            Arg::from(kind),
            Arg::from(0),
            pair.into(),
        ],
    );
    steps.push((call, "make a socket pair", Some(0)));
    if second != inner {
        let call = batch.call(
            libc::SYS_fcntl,
            &[
                Arg::from(second),
                Arg::from(libc::F_DUPFD_CLOEXEC),
                Arg::from(inner),
            ],
        );
        steps.push((call, "move a descriptor out of the way", Some(inner)));
        let call = batch.call(libc::SYS_close, &[Arg::from(second)]);
        steps.push((call, "close a descriptor", Some(0)));
    }
    edit.open.insert(inner);
    run(process, &mut batch, &steps)?;
    let expected = [spare.to_ne_bytes(), second.to_ne_bytes()].concat();
    if batch.bytes(pair) != expected {
        return Err(act(
            process.inside(),
            "make a socket pair where expected",
            Errno::BADF,
        ));
    }
    let ours = pidfd_getfd(pidfd, spare, PidfdGetfdFlags::empty())
        .map_err(|e| act(process.inside(), "hand out its end of a socket pair", e))?;
    Ok(Channel { inner, ours, spare })
}

/// Sends as many objects as the socket takes, one per message; gives how many.
fn send(name: InsidePid, ours: &OwnedFd, installs: &[Install<'_>]) -> Result<usize, Error> {
    for (sent, install) in installs.iter().enumerate() {
        let mut space = [MaybeUninit::<u8>::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [install.object.as_fd()];
        control.push(SendAncillaryMessage::ScmRights(&fds));
        match sendmsg(
            ours,
            &[IoSlice::new(b"d")],
            &mut control,
            SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
        ) {
            Ok(_) => {}
            Err(Errno::AGAIN | Errno::TOOMANYREFS) if sent > 0 => return Ok(sent),
            Err(e) => return Err(act(name, "be sent a descriptor", e)),
        }
    }
    Ok(installs.len())
}

fn receive(
    process: &mut Process,
    channel: &Channel,
    open: &mut BTreeSet<i32>,
    installs: &[Install<'_>],
    first: bool,
    last: bool,
) -> Result<(), Error> {
    let mut batch = Batch::new();
    let mut steps = Vec::new();
    if first {
        let call = batch.call(libc::SYS_close, &[Arg::from(channel.spare)]);
        steps.push((call, "close a descriptor", Some(0)));
        open.remove(&channel.spare);
    }
    for install in installs {
        let call = receive_one(&mut batch, channel.inner);
        steps.push((call, "receive a descriptor", Some(1)));
        let arrived = lowest(open);
        place(&mut batch, &mut steps, open, arrived, &install.place);
    }
    if last {
        let call = batch.call(libc::SYS_close, &[Arg::from(channel.inner)]);
        steps.push((call, "close a descriptor", Some(0)));
        open.remove(&channel.inner);
    }
    run(process, &mut batch, &steps)
}

/// `recvmsg` with room for one byte and one descriptor.
fn receive_one(batch: &mut Batch, socket: i32) -> CallId {
    let byte = batch.output(1);
    let vector = batch.input(&[0_u64.to_ne_bytes(), 1_u64.to_ne_bytes()].concat());
    batch.link(vector, 0, byte);
    // One control message: header of 16 bytes and an int, rounded up to 8 bytes.
    let control = batch.output(24);
    // struct msghdr: name, namelen, iov, iovlen, control, controllen, flags.
    let header: Vec<u8> = [0_u64, 0, 0, 1, 0, 24, 0]
        .into_iter()
        .flat_map(u64::to_ne_bytes)
        .collect();
    let header = batch.input(&header);
    batch.link(header, 16, vector);
    batch.link(header, 32, control);
    let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT;
    batch.call(
        libc::SYS_recvmsg,
        &[Arg::from(socket), header.into(), Arg::from(flags)],
    )
}

/// Moves what arrived to where it belongs.
fn place(
    batch: &mut Batch,
    steps: &mut Vec<(CallId, &'static str, Option<i32>)>,
    open: &mut BTreeSet<i32>,
    arrived: i32,
    destination: &Destination,
) {
    let mut stays = false;
    match destination {
        Destination::Slots(slots) => {
            for &(fd, close_on_exec) in slots {
                if fd == arrived {
                    stays = true;
                    if !close_on_exec {
                        let call = batch.call(
                            libc::SYS_fcntl,
                            &[Arg::from(fd), Arg::from(libc::F_SETFD), Arg::from(0)],
                        );
                        steps.push((call, "change close-on-exec", Some(0)));
                    }
                } else {
                    let flags = if close_on_exec { CLOEXEC } else { 0 };
                    let call = batch.call(
                        libc::SYS_dup3,
                        &[Arg::from(arrived), Arg::from(fd), Arg::from(flags)],
                    );
                    steps.push((call, "move a descriptor to its number", Some(fd)));
                }
                open.insert(fd);
            }
        }
        Destination::WorkingDirectory => {
            let call = batch.call(libc::SYS_fchdir, &[Arg::from(arrived)]);
            steps.push((call, "change its working directory", Some(0)));
        }
        Destination::RootDirectory => {
            let dot = batch.input_str(b".");
            let call = batch.call(libc::SYS_fchdir, &[Arg::from(arrived)]);
            steps.push((call, "change its working directory", Some(0)));
            let call = batch.call(libc::SYS_chroot, &[dot.into()]);
            steps.push((call, "change its root directory", Some(0)));
        }
    }
    if !stays {
        let call = batch.call(libc::SYS_close, &[Arg::from(arrived)]);
        steps.push((call, "close a descriptor", Some(0)));
    }
}
