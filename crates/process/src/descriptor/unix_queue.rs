//! What was sent to a unix socket and not yet received: bytes, descriptors, credentials, senders.
//!
//! Looked at with MSG_PEEK at a moving offset (`SO_PEEK_OFF`), which takes nothing out; the offset and the request
//! for credentials that this needs are put back as they were.

use std::io;
use std::os::fd::BorrowedFd;

use deltabox_sys::socket::{
    Attachments, Credentials, Message, input_queue_bytes, int_option, receive, send, set_int_option,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
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

/// A queue that was looked at.
#[derive(Debug, Default)]
pub(super) struct Looked {
    pub messages: Vec<Message>,
    /// An empty datagram is there. One that has been looked at is passed over the next time, so that there may be more
    /// of them than are seen, and the one seen will not be again.
    pub is_hidden: bool,
    /// An error waits: of a stream, one that comes after the messages; of anything else, one that has to be taken out
    /// before messages can be seen.
    pub has_error: bool,
}

/// Reads the queue without taking anything out.
pub(super) fn peek(socket: BorrowedFd<'_>) -> io::Result<Looked> {
    // Nothing there is the rule; it takes one call to know.
    let ready = ready(socket)?;
    let has_error = ready.contains(PollFlags::ERR);
    let mut found = Looked::default();
    if ready.contains(PollFlags::IN) {
        let kind = int_option(socket, libc::SOL_SOCKET, libc::SO_TYPE)?;
        // The end of a stream is where its error is.
        let is_empty = has_error && (kind != libc::SOCK_STREAM || input_queue_bytes(socket)? == 0);
        if !is_empty {
            found = read_whole(socket, kind, has_error)?;
        }
    }
    found.has_error = has_error;
    Ok(found)
}

fn ready(socket: BorrowedFd<'_>) -> io::Result<PollFlags> {
    let mut asked = [PollFd::from_borrowed_fd(socket, PollFlags::IN | PollFlags::RDHUP)];
    poll(&mut asked, Some(&Timespec::default()))?;
    Ok(asked[0].revents())
}

fn read_whole(socket: BorrowedFd<'_>, kind: i32, has_error: bool) -> io::Result<Looked> {
    let offset = int_option(socket, libc::SOL_SOCKET, libc::SO_PEEK_OFF)?;
    if offset >= 0 {
        set_int_option(socket, libc::SOL_SOCKET, libc::SO_PEEK_OFF, -1)?;
    }
    let found = match first(socket) {
        Ok(None) => Ok(Looked::default()),
        Ok(Some(first)) => read_behind(socket, kind, &first, has_error),
        Err(e) => Err(e),
    };
    if offset >= 0 {
        set_int_option(socket, libc::SOL_SOCKET, libc::SO_PEEK_OFF, offset)?;
    }
    let mut found = found?;
    // Where the program looks at offsets itself, it may have made empty ones disappear.
    found.is_hidden |= offset >= 0 && kind != libc::SOCK_STREAM && !found.messages.is_empty();
    Ok(found)
}

/// The first message without its content.
fn first(socket: BorrowedFd<'_>) -> io::Result<Option<Message>> {
    match receive(socket, 0, true) {
        // A stream or a packet socket that was never connected.
        Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ENOTCONN)) => Ok(None),
        other => other,
    }
}

fn read_behind(socket: BorrowedFd<'_>, kind: i32, first: &Message, has_error: bool) -> io::Result<Looked> {
    if kind != libc::SOCK_STREAM && !first.truncated && !is_end(socket, kind, 0)? {
        return Ok(Looked {
            is_hidden: true,
            ..Looked::default()
        });
    }
    let credentials = int_option(socket, libc::SOL_SOCKET, libc::SO_PASSCRED)?;
    set_int_option(socket, libc::SOL_SOCKET, libc::SO_PASSCRED, 1)?;
    let found = set_int_option(socket, libc::SOL_SOCKET, libc::SO_PEEK_OFF, 0)
        .and_then(|()| read_on(socket, kind, has_error));
    set_int_option(socket, libc::SOL_SOCKET, libc::SO_PEEK_OFF, -1)?;
    set_int_option(socket, libc::SOL_SOCKET, libc::SO_PASSCRED, credentials)?;
    found
}

fn read_on(socket: BorrowedFd<'_>, kind: i32, has_error: bool) -> io::Result<Looked> {
    let mut found = Looked::default();
    let mut bytes = 0;
    // One look too far would take the error out.
    let is_last = |bytes| Ok::<_, io::Error>(has_error && input_queue_bytes(socket)? <= bytes);
    while !is_last(bytes)?
        && let Some(message) = receive(socket, ROOM, true)?
    {
        let is_empty = message.bytes.is_empty() && message.descriptors.is_empty();
        if is_empty && is_end(socket, kind, bytes)? {
            break;
        }
        if message.truncated {
            return Err(io::Error::other("a message of more than a megabyte is queued"));
        }
        bytes += message.bytes.len() as u32;
        found.is_hidden |= message.bytes.is_empty() && kind != libc::SOCK_STREAM;
        found.messages.push(message);
    }
    Ok(found)
}

/// Does nothing mean the end, rather than an empty message? `bytes`: how many have been seen.
fn is_end(socket: BorrowedFd<'_>, kind: i32, bytes: u32) -> io::Result<bool> {
    Ok(match kind {
        libc::SOCK_STREAM => true,
        libc::SOCK_SEQPACKET => {
            ready(socket)?.contains(PollFlags::RDHUP) && input_queue_bytes(socket)? == bytes
        }
        _ => false,
    })
}

/// Takes everything out.
pub(super) fn drain(socket: BorrowedFd<'_>) -> io::Result<Vec<Message>> {
    let kind = int_option(socket, libc::SOL_SOCKET, libc::SO_TYPE)?;
    let mut found = Vec::new();
    while let Some(message) = receive(socket, ROOM, false)? {
        let is_empty = message.bytes.is_empty() && message.descriptors.is_empty();
        if is_empty && is_end(socket, kind, 0)? {
            break;
        }
        found.push(message);
    }
    Ok(found)
}

/// Sends one message as it was sent the first time.
pub(super) fn put(sender: BorrowedFd<'_>, bytes: &[u8], mut with: Attachments<'_>) -> io::Result<()> {
    let mut rest = bytes;
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
