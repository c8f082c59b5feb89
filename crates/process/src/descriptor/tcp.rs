//! TCP sockets: listening, connected within the sandbox, half-closed, closed.
//!
//! What is in flight between two sockets of the sandbox is simply what one has sent and the other has not read, in
//! the receiver's queue or still in the sender's. The sender keeps what it sent until it is acknowledged, which the
//! receiver does up to 200 ms late: what is in both, or in the sender's alone and was read long ago, is told by the
//! sequence numbers. Reading these and the sender's queue takes repair mode (tcp(7), `TCP_REPAIR`), which our side has
//! the privilege for; nothing is sent or taken out by it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use deltabox_sys::socket::{
    input_queue_bytes, int_option, local_address, option, output_queue_bytes, peer_address, receive,
    set_int_option,
};
use serde::{Deserialize, Serialize};

use super::error::{Error, making};
use super::live::Live;
use super::options::{self, Family, Opt};

/// A TCP socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// IPv6.
    pub six: bool,
    pub options: Vec<Opt>,
    /// The address as bytes.
    pub local: Vec<u8>,
    pub role: Role,
}

/// What it does. Sockets are positions in [`Tables::descriptions`](super::tables::Tables::descriptions).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// Not connected; `bound` when the program gave it an address.
    Closed {
        bound: bool,
    },
    Listening {
        backlog: u32,
        /// Those who connected and were not accepted yet, oldest first.
        waiting: Vec<Waiter>,
        /// How many wait, those outside of the sandbox included.
        count: u32,
    },
    Connected(Connection),
}

/// A connection that was not accepted yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiter {
    /// `None`: nobody holds that end any more.
    pub client: Option<u32>,
    /// The address of that end.
    pub from: Vec<u8>,
    /// The address it connected to.
    pub to: Vec<u8>,
    /// What was sent into it.
    pub data: Vec<u8>,
    /// No more will be.
    pub finished: bool,
}

/// A connection, seen from one end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    pub remote: Vec<u8>,
    pub peer: Peer,
    /// Received and not yet read.
    pub received: Vec<u8>,
    /// Sent and not yet received by the peer.
    pub unsent: Vec<u8>,
    /// This end has said that it will send no more.
    pub finished: bool,
    /// So has the peer, and this end knows.
    pub peer_finished: bool,
    /// Bytes received and sent since the connection began: equal counters mean that nothing happened.
    pub counters: (u64, u64),
}

/// The other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Peer {
    Here(u32),
    /// Waits at this listener to be accepted.
    At(u32),
    /// Within the sandbox, and held by nobody any more.
    Gone,
    /// Outside of the sandbox.
    Outside,
}

// include/net/tcp_states.h
const FIN_WAIT1: u8 = 4;
const FIN_WAIT2: u8 = 5;
const TIME_WAIT: u8 = 6;
const CLOSE: u8 = 7;
const CLOSE_WAIT: u8 = 8;
const LAST_ACK: u8 = 9;
pub(super) const LISTEN: u8 = 10;
const CLOSING: u8 = 11;

// include/uapi/linux/tcp.h
pub(super) const TCP_REPAIR: i32 = 19;
pub(super) const TCP_REPAIR_QUEUE: i32 = 20;
pub(super) const TCP_QUEUE_SEQ: i32 = 21;
pub(super) const RECEIVE_QUEUE: i32 = 1;
pub(super) const SEND_QUEUE: i32 = 2;
const NO_QUEUE: i32 = 0;
/// Leaves repair mode without sending anything.
pub(super) const REPAIR_OFF_SILENTLY: i32 = -1;

/// The beginning of `struct tcp_info`.
pub(super) struct Info {
    pub state: u8,
    /// Of a listener: how many wait, and how many may.
    waiting: u32,
    backlog: u32,
    acknowledged: u64,
    received: u64,
}

impl Info {
    /// This end has said that it will send no more.
    pub(super) fn finished(&self) -> bool {
        matches!(
            self.state,
            FIN_WAIT1 | FIN_WAIT2 | TIME_WAIT | CLOSE | LAST_ACK | CLOSING
        )
    }

    pub(super) fn received(&self) -> u64 {
        self.received
    }

    /// The other end has said so, and this one knows.
    fn peer_finished(&self) -> bool {
        matches!(self.state, CLOSE_WAIT | LAST_ACK | CLOSING | TIME_WAIT | CLOSE)
    }
}

pub(super) fn info(socket: BorrowedFd<'_>) -> io::Result<Info> {
    let mut bytes = [0; 136];
    option(socket, libc::IPPROTO_TCP, libc::TCP_INFO, &mut bytes)?;
    let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
    Ok(Info {
        state: bytes[0],
        waiting: word(24),
        backlog: word(28),
        acknowledged: long(120),
        received: long(128),
    })
}

pub(super) fn survey(socket: BorrowedFd<'_>) -> Result<Option<(&'static str, &'static str)>, Error> {
    /// `TCP_ULP`: TLS in the kernel and the like.
    const TCP_ULP: i32 = 31;
    let mut name = [0; 16];
    match option(socket, libc::IPPROTO_TCP, TCP_ULP, &mut name) {
        Ok(len) if len > 0 && name[0] != 0 => Ok(Some((
            "the kernel encrypts or transforms what it carries, with keys that cannot be read out",
            "let the program do so itself",
        ))),
        _ => Ok(None),
    }
}

pub(super) fn family(six: bool) -> Family {
    Family::Tcp { six }
}

pub(super) fn capture(live: &Live, position: usize) -> Result<State, Error> {
    let socket = live.duplicate(position)?;
    let look = || -> io::Result<State> {
        let local = local_address(&socket)?;
        let six = local.first() == Some(&(libc::AF_INET6 as u8));
        let info = info(socket.as_fd())?;
        let role = if info.state == LISTEN {
            let (backlog, count) = (info.backlog, info.waiting);
            Role::Listening {
                backlog,
                waiting: Vec::new(),
                count,
            }
        } else {
            match peer_address(&socket).or_else(|error| former_peer(socket.as_fd(), six, &info).ok_or(error))
            {
                Ok(remote) => Role::Connected(connection(socket.as_fd(), &local, remote)?),
                Err(_) => Role::Closed {
                    bound: port(&local) != 0,
                },
            }
        };
        Ok(State {
            six,
            options: options::read(socket.as_fd(), family(six))?,
            local,
            role,
        })
    };
    look().map_err(making("a TCP socket"))
}

/// Who a socket was connected to whose connection is over: both ends have said so, or it was reset. To the kernel it is
/// closed as if it had never been connected, but what it has received can still be read, and then its end.
fn former_peer(socket: BorrowedFd<'_>, six: bool, info: &Info) -> Option<Vec<u8>> {
    let has_been = info.state == CLOSE && info.acknowledged + info.received > 0;
    // Longer than the address is, the room would not do.
    let mut remote = vec![0; if six { 28 } else { 16 }];
    let asked = option(socket, libc::SOL_SOCKET, libc::SO_PEERNAME, &mut remote);
    (has_been && asked.is_ok()).then_some(remote)
}

fn connection(socket: BorrowedFd<'_>, local: &[u8], remote: Vec<u8>) -> io::Result<Connection> {
    let received = peek_received(socket)?;
    let unsent = if output_queue_bytes(socket)? > 0 {
        in_repair(socket, || peek_sent(socket))?
    } else {
        Vec::new()
    };
    let inside = is_inside(local, &remote);
    let (info, sent) = progress(socket)?;
    Ok(Connection {
        peer: if inside { Peer::Gone } else { Peer::Outside },
        remote,
        received,
        unsent,
        finished: info.finished(),
        peer_finished: info.peer_finished(),
        counters: (info.received, sent),
    })
}

/// With how much has been sent, whether it was acknowledged yet or not.
pub(super) fn progress(socket: BorrowedFd<'_>) -> io::Result<(Info, u64)> {
    loop {
        let unacknowledged = output_queue_bytes(socket)?;
        let info = info(socket)?;
        if output_queue_bytes(socket)? == unacknowledged {
            let sent = info.acknowledged + u64::from(unacknowledged);
            return Ok((info, sent));
        }
    }
}

fn peek(socket: BorrowedFd<'_>, room: usize) -> io::Result<Vec<u8>> {
    Ok(receive(socket, room, true)?.map_or_else(Vec::new, |m| m.bytes))
}

pub(super) fn peek_received(socket: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    match input_queue_bytes(socket)? {
        0 => Ok(Vec::new()),
        waiting => peek(socket, waiting as usize),
    }
}

/// Repair mode forgets `SO_REUSEADDR`, which is put back.
fn in_repair<T>(socket: BorrowedFd<'_>, look: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let reuse = int_option(socket, libc::SOL_SOCKET, libc::SO_REUSEADDR)?;
    set_int_option(socket, libc::IPPROTO_TCP, TCP_REPAIR, 1)?;
    let found = look();
    set_int_option(socket, libc::IPPROTO_TCP, TCP_REPAIR_QUEUE, NO_QUEUE)?;
    set_int_option(socket, libc::IPPROTO_TCP, TCP_REPAIR, REPAIR_OFF_SILENTLY)?;
    set_int_option(socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, reuse)?;
    found
}

/// Reads what was sent and is not acknowledged, in repair mode.
fn peek_sent(socket: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    set_int_option(socket, libc::IPPROTO_TCP, TCP_REPAIR_QUEUE, SEND_QUEUE)?;
    peek(socket, output_queue_bytes(socket)? as usize)
}

/// The number of the byte that comes next in a queue, in repair mode.
fn sequence(socket: BorrowedFd<'_>, queue: i32) -> io::Result<u32> {
    set_int_option(socket, libc::IPPROTO_TCP, TCP_REPAIR_QUEUE, queue)?;
    int_option(socket, libc::IPPROTO_TCP, TCP_QUEUE_SEQ).map(i32::cast_unsigned)
}

/// What was sent from one end and not read at the other: what has arrived, and what has not.
pub(super) fn in_flight(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<(Vec<u8>, Vec<u8>)> {
    /// Programs are stopped: what moves is what the kernel still sends, until the receiver's room is full.
    const TRIES: usize = 1000;
    let expected = || in_repair(to, || sequence(to, RECEIVE_QUEUE));
    for _ in 0..TRIES {
        let look = || Ok((peek_sent(from)?, sequence(from, SEND_QUEUE)?));
        let (kept, end) = in_repair(from, look)?;
        let next = expected()?;
        let received = peek_received(to)?;
        // The end of a stream has a number of its own.
        let end_is_coming = info(from)?.finished() && !info(to)?.peer_finished();
        if expected()? == next {
            let missing = end.wrapping_sub(next).wrapping_sub(u32::from(end_is_coming)) as usize;
            let arrived = kept.len().saturating_sub(missing);
            return Ok((received, kept[arrived..].to_vec()));
        }
    }
    Err(io::Error::other("what is in flight does not come to rest"))
}

/// Finds out who is connected to whom, once all sockets are known.
pub(super) fn connect_ends(live: &Live, all: &mut [(u32, &mut State)]) -> Result<(), Error> {
    find_ends(all);
    for index in 0..all.len() {
        let (position, state) = &all[index];
        let Role::Connected(Connection {
            peer: Peer::Here(peer),
            unsent,
            ..
        }) = &state.role
        else {
            continue;
        };
        if unsent.is_empty() {
            continue;
        }
        let (own, peer) = (*position, *peer);
        let (from, to) = (live.duplicate(own as usize)?, live.duplicate(peer as usize)?);
        let (received, unsent) =
            in_flight(from.as_fd(), to.as_fd()).map_err(making("a connection that is in use"))?;
        for (position, state) in &mut *all {
            let Role::Connected(connection) = &mut state.role else {
                continue;
            };
            if *position == peer {
                connection.received.clone_from(&received);
            } else if *position == own {
                connection.unsent.clone_from(&unsent);
            }
        }
    }
    Ok(())
}

fn find_ends(all: &mut [(u32, &mut State)]) {
    // Where it leads, and whether it is over: the same addresses may have been used again since.
    type Remote = Option<(End, bool)>;
    let ends: Vec<(u32, End, Remote)> = all
        .iter()
        .map(|(position, state)| {
            let remote = match &state.role {
                Role::Connected(c) => Some((end(&c.remote), c.finished && c.peer_finished)),
                Role::Closed { .. } | Role::Listening { .. } => None,
            };
            (*position, end(&state.local), remote)
        })
        .collect();
    let is_listener: Vec<bool> = all
        .iter()
        .map(|(_, s)| matches!(s.role, Role::Listening { count, .. } if count > 0))
        .collect();
    let mut waits = Vec::new();
    for (index, (position, state)) in all.iter_mut().enumerate() {
        let Role::Connected(connection) = &mut state.role else {
            continue;
        };
        if connection.peer == Peer::Outside {
            continue;
        }
        let (local, remote) = (ends[index].1, end(&connection.remote));
        let over = connection.finished && connection.peer_finished;
        let other = ends
            .iter()
            .find(|(p, l, r)| p != position && *l == remote && *r == Some((local, over)));
        let listener = ends.iter().enumerate().find(|(i, (_, l, _))| {
            is_listener[*i] && l.1 == remote.1 && (l.0 == remote.0 || l.0 == ANY || l.0 == ANY4)
        });
        connection.peer = match (other, listener) {
            (Some((peer, _, _)), _) => Peer::Here(*peer),
            (None, Some((_, (at, _, _)))) if !connection.finished && !connection.peer_finished => {
                waits.push((*at, *position, state.local.clone(), connection.remote.clone()));
                // What it has sent is kept with the listener.
                connection.unsent.clear();
                Peer::At(*at)
            }
            _ => Peer::Gone,
        };
    }
    for (position, state) in all {
        if let Role::Listening { waiting, .. } = &mut state.role {
            let here = waits.iter().filter(|(at, ..)| at == position);
            *waiting = here
                .map(|(_, client, from, to)| Waiter {
                    client: Some(*client),
                    from: from.clone(),
                    to: to.clone(),
                    data: Vec::new(),
                    finished: false,
                })
                .collect();
        }
    }
}

/// Address (IPv4 as IPv6) and port.
type End = ([u8; 16], u16);

const ANY: [u8; 16] = [0; 16];
const ANY4: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0];

fn ip(address: &[u8]) -> [u8; 16] {
    let mut ip = ANY4;
    match (
        address.first().map(|f| i32::from(*f)),
        address.get(4..8),
        address.get(8..24),
    ) {
        (Some(libc::AF_INET), Some(four), _) => ip[12..].copy_from_slice(four),
        (Some(libc::AF_INET6), _, Some(sixteen)) => ip.copy_from_slice(sixteen),
        _ => {}
    }
    ip
}

/// Are both ends of a connection in the sandbox?
pub(super) fn is_inside(local: &[u8], remote: &[u8]) -> bool {
    is_loopback(remote) || ip(remote) == ip(local)
}

pub(super) fn port(address: &[u8]) -> u16 {
    address.get(2..4).map_or(0, |p| u16::from_be_bytes([p[0], p[1]]))
}

pub(super) fn end(address: &[u8]) -> End {
    (ip(address), port(address))
}

fn is_loopback(address: &[u8]) -> bool {
    let ip = ip(address);
    let mut six = [0; 16];
    six[15] = 1;
    ip == six || (ip[..12] == ANY4[..12] && ip[12] == 127)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_queues_are_looked_at_without_a_trace() {
        use std::io::{Read, Write};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        client.set_nonblocking(true).unwrap();
        let block: Vec<u8> = (0..100_000_u32).map(|i| (i % 251) as u8).collect();
        let mut sent = Vec::new();
        while let Ok(n) = client.write(&block) {
            sent.extend_from_slice(&block[..n]);
        }
        let (received, unsent) = in_flight(client.as_fd(), server.as_fd()).unwrap();
        assert!(!unsent.is_empty());
        assert_eq!([received, unsent].concat(), sent);
        drop(client);
        let mut all = Vec::new();
        server.read_to_end(&mut all).unwrap();
        assert_eq!(all, sent);
    }

    /// The acknowledgement of what was read long ago may be late.
    #[test]
    fn what_was_received_is_not_in_flight_for_want_of_an_acknowledgement() {
        use std::io::{Read, Write};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        client.set_nodelay(true).unwrap();
        let late = |socket: BorrowedFd<'_>| {
            set_int_option(socket, libc::IPPROTO_TCP, libc::TCP_QUICKACK, 0).unwrap();
        };
        late(server.as_fd());
        client.write_all(b"read long ago, ").unwrap();
        server.read_exact(&mut [0; 15]).unwrap();
        late(server.as_fd());
        client.write_all(b"arrived").unwrap();
        let (received, unsent) = in_flight(client.as_fd(), server.as_fd()).unwrap();
        assert_eq!(
            (received.as_slice(), unsent.as_slice()),
            (&b"arrived"[..], &b""[..])
        );
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let (received, unsent) = in_flight(client.as_fd(), server.as_fd()).unwrap();
        assert_eq!(
            (received.as_slice(), unsent.as_slice()),
            (&b"arrived"[..], &b""[..])
        );
        let sent = || progress(client.as_fd()).unwrap().1;
        let before = sent();
        while output_queue_bytes(&client).unwrap() > 0 {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert_eq!(sent(), before, "an acknowledgement changes nothing");
    }
}
