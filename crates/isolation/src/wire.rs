//! Messages with descriptors between owner, spawner and inits, over `SOCK_SEQPACKET` sockets.
//!
//! A message is one packet: a byte saying where the body is, then the body (postcard). A body that would not fit
//! into a packet (long argument lists) travels in a memory file passed as the last descriptor.

use std::io::{self, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::MemfdFlags;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Largest body inside a packet.
const INLINE_MAX: usize = 8 << 10;
/// Largest body at all: the kernel's own bound for arguments and environment is about 2 MiB, plus room.
const BODY_MAX: usize = 8 << 20;
/// Most descriptors in one message (the kernel's bound is 253).
pub(crate) const FDS_MAX: usize = 128;

const INLINE: u8 = 0;
const SPILLED: u8 = 1;

/// One end of a conversation.
#[derive(Debug)]
pub(crate) struct Channel {
    socket: OwnedFd,
}

impl From<OwnedFd> for Channel {
    fn from(socket: OwnedFd) -> Self {
        Self { socket }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Both ends of a new connection, close-on-exec.
pub(crate) fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

impl Channel {
    /// Sends a message; waits while the other side's queue is full.
    pub(crate) fn send<T: Serialize>(&self, message: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.send_with(message, fds, SendFlags::NOSIGNAL)
    }

    /// Sends a message, or fails with `WouldBlock` while the other side's queue is full.
    pub(crate) fn try_send<T: Serialize>(&self, message: &T) -> io::Result<()> {
        self.send_with(message, &[], SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
    }

    fn send_with<T: Serialize>(
        &self,
        message: &T,
        fds: &[BorrowedFd<'_>],
        flags: SendFlags,
    ) -> io::Result<()> {
        let body = postcard::to_stdvec(message).map_err(io::Error::other)?;
        if body.len() > BODY_MAX || fds.len() >= FDS_MAX {
            return Err(io::Error::from_raw_os_error(libc::E2BIG));
        }
        let spill;
        let mut all: Vec<BorrowedFd<'_>> = fds.to_vec();
        let (place, inline): (u8, &[u8]) = if body.len() <= INLINE_MAX {
            (INLINE, &body)
        } else {
            spill = spill_body(&body)?;
            all.push(spill.as_fd());
            (SPILLED, &[])
        };
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !all.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&all)) {
            return Err(io::Error::from_raw_os_error(libc::E2BIG));
        }
        let place = [place];
        let parts = [IoSlice::new(&place), IoSlice::new(inline)];
        loop {
            match rustix::net::sendmsg(&self.socket, &parts, &mut control, flags) {
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Receives a message with its descriptors (close-on-exec), or `None` when the other side has closed.
    pub(crate) fn receive<T: DeserializeOwned>(&self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        self.receive_with(RecvFlags::CMSG_CLOEXEC)
    }

    /// Like [`Self::receive`], failing with `WouldBlock` when nothing is there.
    pub(crate) fn try_receive<T: DeserializeOwned>(&self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        self.receive_with(RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT)
    }

    fn receive_with<T: DeserializeOwned>(&self, flags: RecvFlags) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        let mut packet = [0; INLINE_MAX + 1];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            match rustix::net::recvmsg(
                &self.socket,
                &mut [IoSliceMut::new(&mut packet)],
                &mut control,
                flags,
            ) {
                Ok(received) => break received,
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        };
        let mut fds: Vec<OwnedFd> = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        if received.bytes == 0 {
            return Ok(None);
        }
        if received
            .flags
            .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
        {
            return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
        }
        let message = if packet[0] == SPILLED {
            let spill = fds
                .pop()
                .ok_or_else(|| io::Error::from_raw_os_error(libc::EBADMSG))?;
            decode(&read_spill(spill)?)?
        } else {
            decode(&packet[1..received.bytes])?
        };
        Ok(Some((message, fds)))
    }
}

fn decode<T: DeserializeOwned>(body: &[u8]) -> io::Result<T> {
    postcard::from_bytes(body).map_err(|_| io::Error::from_raw_os_error(libc::EBADMSG))
}

fn spill_body(body: &[u8]) -> io::Result<OwnedFd> {
    let file = rustix::fs::memfd_create("message", MemfdFlags::CLOEXEC)?;
    let mut written = 0;
    while written < body.len() {
        written += rustix::io::pwrite(&file, &body[written..], written as u64)?;
    }
    Ok(file)
}

fn read_spill(file: OwnedFd) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    std::fs::File::from(file)
        .take(BODY_MAX as u64 + 1)
        .read_to_end(&mut body)?;
    if body.len() > BODY_MAX {
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    Ok(body)
}
