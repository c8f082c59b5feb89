//! What was sent to a unix socket and not yet received: bytes, descriptors, credentials, senders.
//!
//! Looked at with MSG_PEEK at a moving offset (`SO_PEEK_OFF`), which takes nothing out; the offset and the request
//! for credentials that this needs are put back as they were.

use std::io;
use std::os::fd::BorrowedFd;

use deltabox_sys::socket::{Attachments, Credentials, Message, int_option, receive, send, set_int_option};
use serde::{Deserialize, Serialize};

use super::live::Live;
use crate::ids::InsidePid;

/// One message, or a piece of a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Queued {
    pub bytes: Vec<u8>,
    /// Positions in [`Tables::descriptions`](super::tables::Tables::descriptions).
    pub descriptors: Vec<u32>,
    /// The sender's address as bytes; empty when it had none.
    pub sender: Vec<u8>,
    pub credentials: Option<Identity>,
    pub end_of_record: bool,
}

/// A process with its ids, as credentials name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// `None` when it is outside of the sandbox, or gone.
    pub process: Option<InsidePid>,
    /// Counted from the sandbox's first id, as is the group.
    pub uid: u32,
    pub gid: u32,
}

impl Identity {
    pub(super) fn of(live: &Live, credentials: Credentials) -> Identity {
        Identity {
            process: live.inside(credentials.pid),
            uid: live.first_id.inside(credentials.uid),
            gid: live.first_id.inside(credentials.gid),
        }
    }
}

/// The most a datagram can be: what `SO_SNDBUF` allows at most by default, several times over.
const ROOM: usize = 1 << 20;

/// Reads the queue without taking anything out.
pub(super) fn peek(socket: BorrowedFd<'_>) -> io::Result<Vec<Message>> {
    // Nothing there is the rule; it takes one call to know.
    if receive(socket, 0, true)?.is_none() {
        return Ok(Vec::new());
    }
    let offset = int_option(socket, libc::SOL_SOCKET, libc::SO_PEEK_OFF)?;
    let credentials = int_option(socket, libc::SOL_SOCKET, libc::SO_PASSCRED)?;
    set_int_option(socket, libc::SOL_SOCKET, libc::SO_PASSCRED, 1)?;
    let found = set_int_option(socket, libc::SOL_SOCKET, libc::SO_PEEK_OFF, 0).and_then(|()| read_on(socket));
    set_int_option(socket, libc::SOL_SOCKET, libc::SO_PEEK_OFF, offset)?;
    set_int_option(socket, libc::SOL_SOCKET, libc::SO_PASSCRED, credentials)?;
    found
}

fn read_on(socket: BorrowedFd<'_>) -> io::Result<Vec<Message>> {
    let kind = int_option(socket, libc::SOL_SOCKET, libc::SO_TYPE)?;
    let mut found = Vec::new();
    while let Some(message) = receive(socket, ROOM, true)? {
        // The end of a stream reads as nothing; an empty datagram is one.
        if message.bytes.is_empty() && message.descriptors.is_empty() && kind == libc::SOCK_STREAM {
            break;
        }
        if kind == libc::SOCK_SEQPACKET && is_end(&message) {
            break;
        }
        if message.truncated {
            return Err(io::Error::other("a message of more than a megabyte is queued"));
        }
        let endless = message.bytes.is_empty() && kind != libc::SOCK_STREAM;
        found.push(message);
        // An empty datagram does not move the offset; what is behind one cannot be looked at.
        if endless {
            break;
        }
    }
    Ok(found)
}

fn is_end(message: &Message) -> bool {
    message.bytes.is_empty()
        && message.descriptors.is_empty()
        && message.credentials.is_none_or(|c| c.pid == 0)
}

/// Takes everything out.
pub(super) fn drain(socket: BorrowedFd<'_>) -> io::Result<()> {
    while let Some(message) = receive(socket, ROOM, false)? {
        if message.bytes.is_empty() && message.descriptors.is_empty() {
            break;
        }
    }
    Ok(())
}

/// Sends one message as it was sent the first time. `address` is where to, for a sender that is not connected.
pub(super) fn put(
    sender: BorrowedFd<'_>,
    address: &[u8],
    message: &Queued,
    descriptors: &[BorrowedFd<'_>],
    credentials: Option<Credentials>,
) -> io::Result<()> {
    let mut with = Attachments {
        address,
        descriptors,
        credentials,
        end_of_record: message.end_of_record,
    };
    let mut rest = message.bytes.as_slice();
    loop {
        let sent = match send(sender, rest, with) {
            // The process that sent it is gone.
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) && with.credentials.is_some() => {
                with.credentials = None;
                continue;
            }
            other => other?,
        };
        rest = &rest[sent..];
        with.descriptors = &[];
        if rest.is_empty() {
            return Ok(());
        }
    }
}
