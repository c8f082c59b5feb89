//! Unix sockets: pairs, listeners, connections, datagrams.
//!
//! A socket is kept when it is the same one, in the same relations: listening under the same name, or connected to
//! the same peer. What cannot be undone on a socket (a shutdown, a connection made or lost, credentials) makes it,
//! and with it its peer, be made anew ([`unix_make`](super::unix_make)).

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};

use deltabox_sys::socket::{Credentials, Message, int_option, local_address, option};
use serde::{Deserialize, Serialize};

use super::diag::{UnixSocket, unix_sockets};
use super::error::{Error, making};
use super::live::Live;
use super::options::{self, Family, Opt};
use super::place::Place;
use super::unix_queue::{Identity, Queued, peek};
use super::{room, unix_backlog, unix_name, unix_renew};

/// A unix socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// `SOCK_STREAM`, `SOCK_DGRAM` or `SOCK_SEQPACKET`.
    pub kind: i32,
    pub options: Vec<Opt>,
    /// The address as bytes: only a family when it has no name; a path; or a zero byte and an abstract name.
    pub name: Vec<u8>,
    /// Where the socket file is, for those that others can find by it.
    pub file: Option<Place>,
    pub role: Role,
    /// Bit 0: receiving is shut down, bit 1: sending.
    pub shutdown: u8,
    /// Whom the socket says its peer is (`SO_PEERCRED`).
    pub credentials: Option<Identity>,
    /// The peer of a stream closed it without having read everything, which the program has not been told yet.
    pub is_reset: bool,
    pub queue: Vec<Queued>,
}

/// How it relates to others. Sockets are positions in
/// [`Tables::descriptions`](super::tables::Tables::descriptions).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// Neither listening nor connected.
    Idle,
    Listening {
        backlog: u32,
        /// Those who wait to be accepted, oldest first.
        waiting: Vec<Waiter>,
    },
    /// `None`: the peer is closed, or outside of the sandbox.
    Connected { peer: Option<u32> },
    /// Connected to a listener that has not accepted it yet. `sent`: how much memory what it has sent takes; nobody can
    /// read that before it is accepted, so that, made again, such a connection is one that was reset.
    Waiting { sent: u32 },
}

/// A connection that was not accepted yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiter {
    /// `None`: one that nobody holds any more.
    pub client: Option<u32>,
    /// Who has connected it, if that is known.
    pub by: Option<Identity>,
    /// What was sent into it, as far as the client is gone.
    pub sent: Vec<Queued>,
}

/// All unix sockets of the sandbox as they are now.
pub(super) struct Now {
    diag: HashMap<u32, UnixSocket>,
    by_ino: HashMap<u32, usize>,
    /// Who waits at which listener.
    waits: HashMap<u32, u32>,
}

impl Now {
    pub(super) fn read(live: &Live) -> Result<Now, Error> {
        let diag = room::inside(live, None, unix_sockets).map_err(making("the list of unix sockets"))?;
        let waits = diag
            .iter()
            .flat_map(|(ino, socket)| socket.waiting.iter().map(move |client| (*client, *ino)))
            .collect();
        let mut now = Now {
            diag,
            by_ino: HashMap::new(),
            waits,
        };
        now.note_positions(live);
        Ok(now)
    }

    /// Notes where each socket is.
    pub(super) fn note_positions(&mut self, live: &Live) {
        let all = live.descriptions.iter().enumerate();
        let sockets = all.filter(|(_, d)| d.is_socket());
        self.by_ino = sockets
            .map(|(position, d)| (d.object.ino as u32, position))
            .collect();
    }

    /// What the kernel says of a live socket.
    pub(super) fn of(&self, live: &Live, position: usize) -> UnixSocket {
        let ino = live.descriptions[position].object.ino as u32;
        self.diag.get(&ino).cloned().unwrap_or_default()
    }

    pub(super) fn position(&self, ino: u32) -> Option<usize> {
        self.by_ino.get(&ino).copied()
    }
}

/// The relations of a live socket, in live positions.
pub(super) fn role(now: &Now, live: &Live, position: usize, kind: i32, has_peer: bool) -> Role {
    let found = now.of(live, position);
    let at = |ino: u32| now.position(ino).map(|p| p as u32);
    if found.listening {
        let waiting = found.waiting.iter().map(|&ino| Waiter {
            client: at(ino),
            by: None,
            sent: Vec::new(),
        });
        return Role::Listening {
            backlog: found.backlog,
            waiting: waiting.collect(),
        };
    }
    let ino = live.descriptions[position].object.ino as u32;
    if now.waits.contains_key(&ino) {
        return Role::Waiting { sent: 0 };
    }
    match found.peer {
        Some(peer) => Role::Connected { peer: at(peer) },
        // A stream whose peer is closed still knows that it was connected.
        None if has_peer && kind != libc::SOCK_DGRAM => Role::Connected { peer: None },
        None => Role::Idle,
    }
}

/// The process that `SO_PEERCRED` names; none for sockets that were never connected.
pub(super) fn credentials(live: &Live, socket: BorrowedFd<'_>) -> Result<Option<Identity>, Error> {
    let mut bytes = [0; 12];
    option(socket, libc::SOL_SOCKET, libc::SO_PEERCRED, &mut bytes).map_err(making("a unix socket"))?;
    let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let (pid, uid, gid) = (word(0) as i32, word(4), word(8));
    // The kernel answers with ids of -1 when there are none.
    if pid == 0 && uid == u32::MAX {
        return Ok(None);
    }
    Ok(Some(Identity::of(live, Credentials { pid, uid, gid })))
}

/// Was the socket connected at some time? Even a socket whose peer is closed has the peer's credentials.
pub(super) fn was_connected(socket: BorrowedFd<'_>) -> Result<bool, Error> {
    let mut bytes = [0; 12];
    option(socket, libc::SOL_SOCKET, libc::SO_PEERCRED, &mut bytes).map_err(making("a unix socket"))?;
    Ok(bytes[4..8] != [0xff; 4])
}

pub(super) fn capture(live: &Live, now: &Now, position: usize) -> Result<State, Error> {
    let socket = live.duplicate(position)?;
    let socket = socket.as_fd();
    let failed = || making("a unix socket");
    let kind = int_option(socket, libc::SOL_SOCKET, libc::SO_TYPE).map_err(failed())?;
    let connected = was_connected(socket)?;
    let found = now.of(live, position);
    let mut role = role(now, live, position, kind, connected);
    match (&mut role, live.backlogs.get(&position)) {
        (Role::Listening { waiting, .. }, Some(known)) => waiting.clone_from(known),
        (Role::Waiting { sent }, _) => *sent = unix_backlog::sent(live, position)?,
        _ => {}
    }
    let Queue {
        mut messages,
        is_hidden,
        has_error,
    } = queue(live, position)?;
    if has_error && kind != libc::SOCK_STREAM {
        return Err(live.refusal(
            position,
            "an error waits in it, which cannot be looked at without taking it out",
            "have the program receive from it, and try again",
        ));
    }
    if is_hidden {
        messages = unix_renew::renew(live, now, position)?;
    }
    let name = local_address(socket).map_err(failed())?;
    let file = match is_found(kind, &role) && name.len() > 2 {
        true => unix_name::file_of(live, socket)?,
        false => None,
    };
    Ok(State {
        kind,
        options: options::read(socket, Family::Unix).map_err(failed())?,
        name,
        file,
        role,
        shutdown: found.shutdown,
        credentials: credentials(live, socket)?,
        is_reset: has_error,
        queue: messages,
    })
}

/// Can others find it by its name? A stream that is connected gave its name away only to be known by.
pub(super) fn is_found(kind: i32, role: &Role) -> bool {
    kind == libc::SOCK_DGRAM || matches!(role, Role::Idle | Role::Listening { .. })
}

/// What can be seen of a queue.
#[derive(Clone, Debug)]
pub(super) struct Queue {
    /// With descriptors as live positions.
    pub messages: Vec<Queued>,
    /// There are empty messages, which can be looked at only once: there may be more.
    pub is_hidden: bool,
    /// An error waits, of a stream behind the messages, of others before them.
    pub has_error: bool,
}

pub(super) fn queue(live: &Live, position: usize) -> Result<Queue, Error> {
    if let Some(known) = live.queues.get(&position) {
        return Ok(known.clone());
    }
    let looked = peek(live.duplicate(position)?.as_fd()).map_err(making("the queue of a unix socket"))?;
    let queued = looked.messages.iter().map(|message| known(live, message));
    Ok(Queue {
        messages: queued.collect(),
        is_hidden: looked.is_hidden,
        has_error: looked.has_error,
    })
}

/// A message without descriptors.
pub(super) fn known(live: &Live, message: &Message) -> Queued {
    Queued {
        credentials: known_sender(live, message.credentials),
        bytes: message.bytes.clone(),
        descriptors: Vec::new(),
        sender: message.sender.clone(),
        end_of_record: message.end_of_record,
    }
}

pub(super) fn known_sender(live: &Live, credentials: Option<Credentials>) -> Option<Identity> {
    // Nobody asked for them when it was sent: the kernel then answers with nothing in particular.
    credentials.filter(|c| c.pid != 0).map(|c| Identity::of(live, c))
}
