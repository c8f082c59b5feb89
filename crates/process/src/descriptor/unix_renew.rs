//! Queues with empty messages in them. Looking at such a message once makes it invisible to the next look, so these
//! queues are taken out and put back at once, while everything stands still; a queue that cannot be put back as it was
//! is refused.

use std::os::fd::{AsFd, OwnedFd};

use deltabox_sys::socket::{Attachments, Message, bind, int_option, local_address, set_int_option};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::error::{Error, making};
use super::live::Live;
use super::room;
use super::unix::{self, Now};
use super::unix_name::{self, Way};
use super::unix_queue::{self, Queued};

/// Who sends again what was taken out.
enum Source {
    /// The other one of a pair.
    Peer(OwnedFd),
    /// Anybody who finds the socket, under the name the message came from.
    Anybody(Way),
}

/// Reads a whole queue by taking it out and putting it back.
pub(super) fn renew(live: &Live, now: &Now, position: usize) -> Result<Vec<Queued>, Error> {
    let failed = || making("the queue of a unix socket");
    let socket = live.duplicate(position)?;
    let source = match source(live, now, position)? {
        Some(source) if !live.queues.contains_key(&position) => source,
        _ => {
            return Err(live.refusal(
                position,
                "empty messages wait in it, and what is behind them cannot be looked at",
                "have the program receive them first",
            ));
        }
    };
    let asked = int_option(&socket, libc::SOL_SOCKET, libc::SO_PASSCRED).map_err(failed())?;
    let ask = |value| set_int_option(&socket, libc::SOL_SOCKET, libc::SO_PASSCRED, value);
    ask(1).map_err(failed())?;
    let messages = unix_queue::drain(socket.as_fd()).map_err(failed())?;
    // Or everything would be sent with credentials, asked for at the time or not.
    ask(0).map_err(failed())?;
    for message in &messages {
        put_back(live, &source, message)?;
    }
    ask(asked).map_err(failed())?;
    Ok(messages
        .iter()
        .map(|message| unix::known(live, message))
        .collect())
}

fn source(live: &Live, now: &Now, position: usize) -> Result<Option<Source>, Error> {
    let found = now.of(live, position);
    if found.shutdown != 0 {
        return Ok(None);
    }
    if let Some(peer) = found.peer {
        let own = live.descriptions[position].object.ino as u32;
        let Some(peer) = now.position(peer) else {
            return Ok(None);
        };
        let theirs = now.of(live, peer);
        let can_send = theirs.peer == Some(own) && theirs.shutdown == 0;
        return Ok(if can_send {
            Some(Source::Peer(live.duplicate(peer)?))
        } else {
            None
        });
    }
    let socket = live.duplicate(position)?;
    match Way::to(socket.as_fd()).map_err(making("the name of a unix socket"))? {
        Way::Name(name) if name.len() <= 2 => Ok(None),
        way => Ok(Some(Source::Anybody(way))),
    }
}

fn put_back(live: &Live, source: &Source, message: &Message) -> Result<(), Error> {
    let failed = || making("the queue of a unix socket");
    let descriptors: Vec<_> = message.descriptors.iter().map(AsFd::as_fd).collect();
    let with = Attachments {
        address: &[],
        descriptors: &descriptors,
        credentials: message.credentials.filter(|c| c.pid != 0),
        end_of_record: message.end_of_record,
    };
    match source {
        Source::Peer(peer) => unix_queue::put(peer.as_fd(), &message.bytes, with).map_err(failed()),
        Source::Anybody(way) => {
            let sender = match named(live, &message.sender)? {
                Some(sender) => sender,
                None => stand_in(live, &message.sender)?,
            };
            let address = way.address();
            let with = Attachments {
                address: &address,
                ..with
            };
            unix_queue::put(sender.as_fd(), &message.bytes, with).map_err(failed())
        }
    }
}

/// The socket that has an abstract name, which no other can have; a path may be the name of many.
fn named(live: &Live, name: &[u8]) -> Result<Option<OwnedFd>, Error> {
    if name.get(2) != Some(&0) {
        return Ok(None);
    }
    for (position, description) in live.descriptions.iter().enumerate() {
        if description.is_socket() {
            let socket = live.duplicate(position)?;
            let kind = int_option(&socket, libc::SOL_SOCKET, libc::SO_TYPE).map_err(making("a socket"))?;
            if kind == libc::SOCK_DGRAM && local_address(&socket).map_err(making("a socket"))? == name {
                return Ok(Some(socket));
            }
        }
    }
    Ok(None)
}

/// A datagram socket with the name of one that is gone, to send what that one has sent.
pub(super) fn stand_in(live: &Live, name: &[u8]) -> Result<OwnedFd, Error> {
    /// As much as any message may need.
    const ROOM: i32 = 1 << 22;
    let failed = || making("a sender of datagrams");
    let make = || {
        let (family, kind) = (AddressFamily::UNIX, SocketType::DGRAM);
        Ok(socket_with(family, kind, SocketFlags::CLOEXEC, None)?)
    };
    let socket = room::inside(live, None, make).map_err(failed())?;
    set_int_option(&socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, ROOM).map_err(failed())?;
    match unix_name::path(name) {
        Some(path) => unix_name::bind_nowhere(live, &socket, name, path).map_err(failed())?,
        None if name.len() > 2 => bind(&socket, name).map_err(failed())?,
        None => {}
    }
    Ok(socket)
}
