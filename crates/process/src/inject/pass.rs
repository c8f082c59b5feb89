//! Handing open files to a stopped process: over a socket pair that the process makes for us.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::Batch;
use crate::error::TraceError;
use crate::stop::Process;

/// `CMSG_LEN` of one descriptor: the header and the number.
const CONTROL: usize = 24;

/// Opens `file` in the process as well. Returns its number there, which has to be closed by the caller.
pub fn pass(process: &mut Process, file: BorrowedFd<'_>) -> Result<u64, TraceError> {
    let pid = process.pid();
    let call = |name: &'static str| move |errno| TraceError::Call { pid, name, errno };
    let mut batch = Batch::new();
    let pair = batch.output(8);
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC;
    let made = batch.call(
        libc::SYS_socketpair,
        &[libc::AF_UNIX.into(), kind.into(), 0.into(), pair.into()],
    );
    process.run(&mut batch)?;
    batch.result(made).map_err(call("socketpair"))?;
    let number = |at: usize| {
        batch.bytes(pair)[at..]
            .first_chunk()
            .map_or(-1, |four| i32::from_ne_bytes(*four))
    };
    let (theirs, ours) = (number(0), number(4));
    let sent = send(process, ours, file);
    let mut batch = Batch::new();
    let control = batch.output(CONTROL);
    let byte = batch.output(1);
    let vector = batch.input(&[0, 1].map(u64::to_ne_bytes).concat());
    batch.link(vector, 0, byte);
    // struct msghdr: name, name length, vector, its length, control, its length, flags.
    let header = [0, 0, 0, 1, 0, CONTROL as u64, 0].map(u64::to_ne_bytes).concat();
    let header = batch.input(&header);
    batch.link(header, 16, vector);
    batch.link(header, 32, control);
    let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT;
    let received = batch.call(libc::SYS_recvmsg, &[theirs.into(), header.into(), flags.into()]);
    batch.call(libc::SYS_close, &[theirs.into()]);
    batch.call(libc::SYS_close, &[ours.into()]);
    process.run(&mut batch)?;
    sent?;
    batch.result(received).map_err(call("recvmsg"))?;
    let number = batch.bytes(control)[16..]
        .first_chunk()
        .map_or(-1, |four| i32::from_ne_bytes(*four));
    u64::try_from(number).map_err(|_| call("recvmsg")(rustix::io::Errno::BADF))
}

fn send(process: &Process, end: i32, file: BorrowedFd<'_>) -> Result<(), TraceError> {
    let tid = process.pid();
    let failed = |errno: rustix::io::Errno| TraceError::Request {
        tid,
        what: "hand an open file to",
        source: errno.into(),
    };
    let pidfd = pidfd_open(tid.pid(), PidfdFlags::empty()).map_err(failed)?;
    let end = pidfd_getfd(&pidfd, end, PidfdGetfdFlags::empty()).map_err(failed)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let files = [file];
    control.push(SendAncillaryMessage::ScmRights(&files));
    sendmsg(&end, &[IoSlice::new(&[0])], &mut control, SendFlags::DONTWAIT).map_err(failed)?;
    Ok(())
}
