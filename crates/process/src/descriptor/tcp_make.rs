//! Making TCP sockets anew. A connection is made in repair mode (tcp(7), `TCP_REPAIR`): both ends are declared
//! connected without a handshake, at any addresses and ports; then what was in flight is simply sent again.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use deltabox_sys::socket::{Attachments, bind, connect, send, set_int_option, set_option};
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, listen, shutdown, socket_with};

use super::diag::{destroy_orphans, destroy_tcp};
use super::error::{Error, making};
use super::options;
use super::restore::Restore;
use super::room;
use super::tables::Kind;
use super::tcp::{
    self, Connection, LISTEN, Peer, RECEIVE_QUEUE, Role, SEND_QUEUE, State, TCP_QUEUE_SEQ, TCP_REPAIR,
    TCP_REPAIR_QUEUE, Waiter,
};

const TCP_REPAIR_OPTIONS: i32 = 22;

fn state<'a>(restore: &Restore<'a>, wanted: usize) -> Option<&'a State> {
    match &restore.wanted.descriptions[wanted].kind {
        Kind::Tcp(state) => Some(state),
        _ => None,
    }
}

/// Lets go of live sockets that are not in the wanted state: a connection cannot be wound back, only made again.
pub(super) fn release_unfit(restore: &mut Restore<'_>) -> Result<(), Error> {
    let mut now: Vec<(u32, State)> = Vec::new();
    for (position, description) in restore.live.descriptions.iter().enumerate() {
        if !description.is_socket() {
            continue;
        }
        let socket = restore.live.duplicate(position)?;
        if super::socket::sort(socket.as_fd())? == super::socket::Sort::Tcp {
            now.push((position as u32, tcp::capture(restore.live, position)?));
        }
    }
    let mut ends: Vec<(u32, &mut State)> = now.iter_mut().map(|(p, s)| (*p, s)).collect();
    tcp::connect_ends(restore.live, &mut ends)?;
    let now: HashMap<u32, State> = now.into_iter().collect();
    loop {
        let kept = restore.kept.iter().enumerate();
        let serves: HashMap<u32, u32> = kept.filter_map(|(w, l)| Some(((*l)? as u32, w as u32))).collect();
        let unfit: Vec<usize> = (0..restore.kept.len())
            .filter(|&wanted| match (state(restore, wanted), restore.kept[wanted]) {
                (Some(state), Some(live)) => now
                    .get(&(live as u32))
                    .is_none_or(|now| !fits(state, now, &serves)),
                _ => false,
            })
            .collect();
        if unfit.is_empty() {
            return Ok(());
        }
        for wanted in unfit {
            restore.kept[wanted] = None;
        }
    }
}

fn fits(wanted: &State, now: &State, serves: &HashMap<u32, u32>) -> bool {
    let one = |live: u32| serves.get(&live).copied().unwrap_or(u32::MAX);
    let role = match now.role.clone() {
        Role::Connected(connection) => {
            let peer = match connection.peer {
                // By rule: a connection that leaves the sandbox is reset.
                Peer::Outside => return false,
                Peer::Here(peer) => Peer::Here(one(peer)),
                Peer::At(listener) => Peer::At(one(listener)),
                Peer::Gone => Peer::Gone,
            };
            Role::Connected(Connection { peer, ..connection })
        }
        Role::Listening {
            backlog,
            waiting,
            count,
        } => Role::Listening {
            backlog,
            count,
            waiting: waiting
                .into_iter()
                .map(|w| Waiter {
                    client: w.client.map(one),
                    ..w
                })
                .collect(),
        },
        closed @ Role::Closed { .. } => closed,
    };
    wanted.local == now.local
        && match (&wanted.role, &role) {
            (
                Role::Listening {
                    backlog,
                    waiting,
                    count,
                },
                Role::Listening {
                    backlog: b,
                    waiting: w,
                    count: c,
                },
            ) => (backlog, count) == (b, c) && same_clients(waiting, w),
            (wanted, role) => wanted == role,
        }
}

/// What the clients have sent, they know best; and they come in the order they came in.
fn same_clients(wanted: &[Waiter], now: &[Waiter]) -> bool {
    let held = wanted.iter().all(|w| w.client.is_some() && !w.finished);
    held && wanted.len() == now.len() && wanted.iter().all(|w| now.iter().any(|n| n.client == w.client))
}

/// Ends a connection without telling the peer, for a socket that is about to be closed; no matter if it is none.
pub(super) fn end_silently(socket: BorrowedFd<'_>) -> Result<(), Error> {
    if super::socket::sort(socket)? != super::socket::Sort::Tcp {
        return Ok(());
    }
    // Listening sockets have nothing to tell.
    if tcp::info(socket).is_ok_and(|info| info.state == LISTEN) {
        return Ok(());
    }
    forget(socket).map_err(making("the end of a TCP connection"))
}

/// Has one end forget its connection without a word. It is in repair mode then.
pub(super) fn forget(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_int_option(socket, libc::IPPROTO_TCP, TCP_REPAIR, 1)?;
    connect(socket, &[0; 16])
}

/// Makes what is missing, and sets the options of all.
pub(super) fn restore_all(restore: &mut Restore<'_>) -> Result<(), Error> {
    let sockets: Vec<(usize, &State)> = (0..restore.wanted.descriptions.len())
        .filter_map(|wanted| Some((wanted, state(restore, wanted)?)))
        .collect();
    let missing: Vec<(usize, &State)> = sockets
        .iter()
        .copied()
        .filter(|(w, _)| restore.kept[*w].is_none())
        .collect();
    if !missing.is_empty() {
        let made = room::inside(restore.live, None, || make_all(&missing)).map_err(making("TCP sockets"))?;
        for (wanted, socket) in made {
            restore.made[wanted] = Some(socket);
        }
    }
    for (wanted, state) in sockets {
        options::restore(restore.object(wanted)?, tcp::family(state.six), &state.options)
            .map_err(making(restore.show(wanted)))?;
    }
    Ok(())
}

fn make_all(missing: &[(usize, &State)]) -> io::Result<HashMap<usize, OwnedFd>> {
    let binds = |state: &State| matches!(state.role, Role::Closed { bound: true } | Role::Listening { .. });
    let bound = missing.iter().filter(|(_, state)| binds(state));
    let ports: HashSet<u16> = bound.map(|(_, state)| tcp::port(&state.local)).collect();
    if !ports.is_empty() {
        destroy_orphans(&ports)?;
    }
    let mut made = HashMap::new();
    for (wanted, state) in missing {
        match &state.role {
            Role::Closed { bound } => {
                let socket = new_socket(state)?;
                if *bound {
                    bind_again(&socket, state)?;
                }
                made.insert(*wanted, socket);
            }
            Role::Listening { backlog, .. } => {
                let socket = new_socket(state)?;
                bind_again(&socket, state)?;
                listen(&socket, *backlog as i32)?;
                made.insert(*wanted, socket);
            }
            Role::Connected(_) => {}
        }
    }
    for (wanted, state) in missing {
        if let Role::Connected(connection) = &state.role
            && !made.contains_key(wanted)
        {
            make_connection(*wanted, state, connection, missing, &mut made)?;
        }
    }
    for (_, state) in missing {
        if let Role::Listening { waiting, .. } = &state.role {
            for waiter in waiting {
                let Some(client) = waiter.client else {
                    come_again(&waiter.from, &waiter.to, waiter)?;
                    continue;
                };
                let of_client = missing.iter().find(|(w, _)| *w == client as usize);
                let Some((
                    _,
                    State {
                        local,
                        role: Role::Connected(connection),
                        ..
                    },
                )) = of_client
                else {
                    return Err(io::Error::other("one who waits to be accepted was not made"));
                };
                made.insert(client as usize, come_again(local, &connection.remote, waiter)?);
            }
        }
    }
    Ok(made)
}

fn make_connection(
    wanted: usize,
    state: &State,
    connection: &Connection,
    missing: &[(usize, &State)],
    made: &mut HashMap<usize, OwnedFd>,
) -> io::Result<()> {
    match connection.peer {
        Peer::Here(peer) => {
            let other = missing.iter().find(|(w, _)| *w == peer as usize);
            let Some((peer, other)) = other else {
                return Err(io::Error::other(
                    "one end of a connection was kept and the other was not",
                ));
            };
            let Role::Connected(theirs) = &other.role else {
                return Err(io::Error::other("the ends of a connection do not agree"));
            };
            let (a, b) = join(state, connection, other.six)?;
            resend(a.as_fd(), connection, theirs)?;
            resend(b.as_fd(), theirs, connection)?;
            made.insert(wanted, a);
            made.insert(*peer, b);
        }
        Peer::Gone => {
            let (a, b) = join(state, connection, state.six)?;
            let nothing = Connection {
                received: Vec::new(),
                unsent: Vec::new(),
                finished: connection.peer_finished,
                ..connection.clone()
            };
            resend(a.as_fd(), connection, &nothing)?;
            resend(b.as_fd(), &nothing, connection)?;
            if !connection.peer_finished {
                // It ended without saying so: a reset is what comes of that.
                reset(b.as_fd())?;
            }
            made.insert(wanted, a);
        }
        Peer::Outside => {
            let (a, b) = join(state, connection, state.six)?;
            reset(b.as_fd())?;
            drop(b);
            made.insert(wanted, a);
        }
        // Made when its listener is.
        Peer::At(_) => {}
    }
    Ok(())
}

/// A client that connects, sends what it has sent, and waits to be accepted.
pub(super) fn come_again(local: &[u8], remote: &[u8], waiter: &Waiter) -> io::Result<OwnedFd> {
    let socket = new_socket_of(local.first() == Some(&(libc::AF_INET6 as u8)))?;
    set_int_option(&socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    destroy(local, remote)?;
    bind(&socket, local)?;
    connect(&socket, remote)?;
    send_all(socket.as_fd(), &waiter.data)?;
    if waiter.finished {
        shutdown(&socket, Shutdown::Write)?;
    }
    Ok(socket)
}

/// Closing it will reset the connection instead of ending it.
fn reset(socket: BorrowedFd<'_>) -> io::Result<()> {
    let at_once = [1_i32.to_ne_bytes(), 0_i32.to_ne_bytes()].concat();
    set_option(socket, libc::SOL_SOCKET, libc::SO_LINGER, &at_once)
}

fn new_socket(state: &State) -> io::Result<OwnedFd> {
    new_socket_of(state.six)
}

fn new_socket_of(six: bool) -> io::Result<OwnedFd> {
    let family = if six {
        AddressFamily::INET6
    } else {
        AddressFamily::INET
    };
    Ok(socket_with(
        family,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// Binds a socket to its address, with the options that matter at that moment: whether an IPv6 socket takes IPv4 too,
/// and whether several share the port.
fn bind_again(socket: &OwnedFd, state: &State) -> io::Result<()> {
    const NOW: [(i32, i32); 2] = [
        (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY),
        (libc::SOL_SOCKET, libc::SO_REUSEPORT),
    ];
    set_int_option(socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    for option in &state.options {
        if NOW.contains(&(option.level, option.name)) {
            set_option(socket, option.level, option.name, &option.value)?;
        }
    }
    bind(socket, &state.local)
}

fn destroy(local: &[u8], remote: &[u8]) -> io::Result<()> {
    for (a, b) in [(local, remote), (remote, local)] {
        match destroy_tcp(a, b) {
            Ok(()) => {}
            // A kernel without the option: the remains of a connection then end by themselves.
            Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// The same address in the family of the other end.
fn in_family(address: &[u8], six: bool) -> Vec<u8> {
    let is_six = address.first() == Some(&(libc::AF_INET6 as u8));
    if is_six == six {
        return address.to_vec();
    }
    let mut other = Vec::with_capacity(28);
    if six {
        other.extend_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
        other.extend_from_slice(&address[2..4]);
        other.extend_from_slice(&[0; 4]);
        other.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]);
        other.extend_from_slice(&address[4..8]);
        other.extend_from_slice(&[0; 4]);
    } else {
        other.extend_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
        other.extend_from_slice(&address[2..4]);
        other.extend_from_slice(&address[20..24]);
        other.extend_from_slice(&[0; 8]);
    }
    other
}

/// Two ends that are connected to each other: ours, and one at the remote address.
fn join(state: &State, connection: &Connection, other_six: bool) -> io::Result<(OwnedFd, OwnedFd)> {
    let (local, remote) = (&state.local, &connection.remote);
    destroy(local, remote)?;
    let mut random = [0; 8];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
    let [a0, a1, a2, a3, b0, b1, b2, b3] = random;
    let (ours, theirs) = (
        u32::from_ne_bytes([a0, a1, a2, a3]),
        u32::from_ne_bytes([b0, b1, b2, b3]),
    );
    let a = end(local, remote, state.six, ours, theirs)?;
    let (there, here) = (in_family(remote, other_six), in_family(local, other_six));
    let b = end(&there, &here, other_six, theirs, ours)?;
    for socket in [&a, &b] {
        set_int_option(socket, libc::IPPROTO_TCP, TCP_REPAIR, 0)?;
    }
    Ok((a, b))
}

/// One end in repair mode: connected, without anybody having been asked.
fn end(local: &[u8], remote: &[u8], six: bool, sends: u32, receives: u32) -> io::Result<OwnedFd> {
    let socket = new_socket_of(six)?;
    let set = |name, value: i32| set_int_option(&socket, libc::IPPROTO_TCP, name, value);
    set(TCP_REPAIR, 1)?;
    bind(&socket, local)?;
    set(TCP_REPAIR_QUEUE, RECEIVE_QUEUE)?;
    set(TCP_QUEUE_SEQ, receives.cast_signed())?;
    set(TCP_REPAIR_QUEUE, SEND_QUEUE)?;
    set(TCP_QUEUE_SEQ, sends.cast_signed())?;
    set(TCP_REPAIR_QUEUE, 0)?;
    connect(&socket, remote)?;
    // What a handshake would have agreed on: segment size of the loopback, window scales, selective
    // acknowledgement, timestamps (`struct tcp_repair_opt`: code, value).
    let agreed: [(u32, u32); 4] = [(2, 65483), (3, 7 | 7 << 16), (4, 0), (8, 0)];
    let bytes: Vec<u8> = agreed
        .iter()
        .flat_map(|(code, value)| [code.to_ne_bytes(), value.to_ne_bytes()].concat())
        .collect();
    set_option(&socket, libc::IPPROTO_TCP, TCP_REPAIR_OPTIONS, &bytes)?;
    Ok(socket)
}

/// Sends what `theirs` had received, or was about to, from `ours`.
fn resend(from: BorrowedFd<'_>, ours: &Connection, theirs: &Connection) -> io::Result<()> {
    let flight = [theirs.received.as_slice(), ours.unsent.as_slice()].concat();
    send_all(from, &flight)?;
    if ours.finished {
        shutdown(from, Shutdown::Write)?;
    }
    Ok(())
}

fn send_all(from: BorrowedFd<'_>, mut rest: &[u8]) -> io::Result<()> {
    if !rest.is_empty() {
        make_room(from, rest.len())?;
    }
    while !rest.is_empty() {
        rest = &rest[send(from, rest, Attachments::default())?..];
    }
    Ok(())
}

/// Lets the send buffer hold that much.
pub(super) fn make_room(socket: BorrowedFd<'_>, len: usize) -> io::Result<()> {
    let room = i32::try_from(len).unwrap_or(i32::MAX / 4).saturating_add(1 << 16);
    set_int_option(socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, room)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_made_out_of_nothing() {
        use std::io::{Read, Write};
        let address = |port: u16| {
            let mut bytes = (libc::AF_INET as u16).to_ne_bytes().to_vec();
            bytes.extend_from_slice(&port.to_be_bytes());
            bytes.extend_from_slice(&[127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
            bytes
        };
        let ours = Connection {
            remote: address(20_002),
            peer: Peer::Gone,
            received: b"from there".to_vec(),
            unsent: vec![7; 1_000_000],
            finished: true,
            peer_finished: false,
            counters: (0, 0),
        };
        let theirs = Connection {
            received: b"first ".to_vec(),
            unsent: Vec::new(),
            finished: false,
            ..ours.clone()
        };
        let role = Role::Closed { bound: false };
        let state = State {
            six: false,
            options: Vec::new(),
            local: address(20_001),
            role,
        };
        let (a, b) = join(&state, &ours, false).unwrap();
        resend(a.as_fd(), &ours, &theirs).unwrap();
        resend(b.as_fd(), &theirs, &ours).unwrap();
        let (mut a, mut b) = (std::net::TcpStream::from(a), std::net::TcpStream::from(b));
        let mut all = Vec::new();
        b.read_to_end(&mut all).unwrap();
        assert_eq!(all, [&b"first "[..], &[7; 1_000_000]].concat());
        b.write_all(b" and more").unwrap();
        drop(b);
        let mut back = String::new();
        a.read_to_string(&mut back).unwrap();
        assert_eq!(back, "from there and more");
    }
}
