//! What netlink knows and no call on a socket itself tells (sock_diag(7), rtnetlink(7)): the peer of a unix socket, its
//! shutdown state, who waits to be accepted; the addresses of interfaces; and ending TCP connections that nobody holds
//! any more.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::OwnedFd;

use deltabox_sys::socket::{Attachments, receive, send};
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType, socket_with};

/// A unix socket as the kernel describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct UnixSocket {
    pub listening: bool,
    /// Inode number of the peer.
    pub peer: Option<u32>,
    /// Inode numbers of the sockets that connected and were not accepted yet, oldest first.
    pub waiting: Vec<u32>,
    /// Bit 0: receiving is shut down, bit 1: sending.
    pub shutdown: u8,
    /// Of a listener: how many may wait.
    pub backlog: u32,
}

const SOCK_DIAG: u32 = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
const TCP_LISTEN: u8 = 10;

/// `UDIAG_SHOW_PEER | ICONS | RQLEN`; the shutdown state comes unasked.
const SHOW: u32 = 4 | 8 | 16;

fn open() -> io::Result<OwnedFd> {
    let protocol = std::num::NonZeroU32::new(SOCK_DIAG).ok_or(io::ErrorKind::Other)?;
    open_netlink(Some(Protocol::from_raw(protocol)))
}

fn open_netlink(protocol: Option<Protocol>) -> io::Result<OwnedFd> {
    let (family, kind) = (AddressFamily::NETLINK, SocketType::DGRAM);
    Ok(socket_with(family, kind, SocketFlags::CLOEXEC, protocol)?)
}

fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = ((16 + body.len()) as u32).to_ne_bytes().to_vec();
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(body);
    bytes
}

/// All unix sockets of the network namespace this thread is in, by inode number.
///
/// # Errors
/// When the kernel has no `CONFIG_UNIX_DIAG`.
pub(super) fn unix_sockets() -> io::Result<HashMap<u32, UnixSocket>> {
    let socket = open()?;
    let mut body = vec![libc::AF_UNIX as u8, 0, 0, 0];
    for word in [u32::MAX, 0, SHOW, u32::MAX, u32::MAX] {
        body.extend_from_slice(&word.to_ne_bytes());
    }
    let mut found = HashMap::new();
    dump(&socket, SOCK_DIAG_BY_FAMILY, &body, &mut |body| {
        found.extend(parse(body));
    })?;
    Ok(found)
}

/// The first IPv4 address of each interface of the network namespace this thread is in, by the interface's number.
///
/// # Errors
/// Those of the kernel.
pub(super) fn interface_addresses() -> io::Result<HashMap<u32, [u8; 4]>> {
    const RTM_GETADDR: u16 = 22;
    const IFA_LOCAL: u16 = 2;
    // Protocol 0 is NETLINK_ROUTE.
    let socket = open_netlink(None)?;
    let mut found = HashMap::new();
    // `struct ifaddrmsg`: family, length of the prefix, flags, scope, number of the interface.
    let request = [libc::AF_INET as u8, 0, 0, 0, 0, 0, 0, 0];
    dump(&socket, RTM_GETADDR, &request, &mut |body| {
        attributes(body.get(8..).unwrap_or_default(), &mut |kind, value| {
            if let (IFA_LOCAL, Ok(address)) = (kind, value.try_into()) {
                found.entry(word(body, 4)).or_insert(address);
            }
        });
    })?;
    Ok(found)
}

/// Calls `visit` for each item of a list that the kernel is asked for.
fn dump(socket: &OwnedFd, kind: u16, request: &[u8], visit: &mut dyn FnMut(&[u8])) -> io::Result<()> {
    let request = message(kind, REQUEST | DUMP, request);
    send(socket, &request, Attachments::default())?;
    loop {
        // A dump answers within the calls; nothing is waited for.
        let Some(answer) = receive(socket, 65536, false)? else {
            return Err(io::Error::other("the kernel did not finish its list of sockets"));
        };
        let mut rest = answer.bytes.as_slice();
        while rest.len() >= 16 {
            let len = (word(rest, 0) as usize).clamp(16, rest.len());
            let (kind, body) = (half(rest, 4), &rest[16..len]);
            match kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => return Err(errno(body)),
                _ => visit(body),
            }
            rest = &rest[len.next_multiple_of(4).min(rest.len())..];
        }
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .map_or(0, |b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]]))
}

fn half(bytes: &[u8], at: usize) -> u16 {
    bytes
        .get(at..at + 2)
        .map_or(0, |b| u16::from_ne_bytes([b[0], b[1]]))
}

fn errno(body: &[u8]) -> io::Error {
    io::Error::from_raw_os_error((word(body, 0) as i32).wrapping_neg())
}

/// Calls `visit` for each `struct rtattr`: its kind and value.
fn attributes(mut rest: &[u8], visit: &mut dyn FnMut(u16, &[u8])) {
    while rest.len() >= 4 {
        let len = (half(rest, 0) as usize).clamp(4, rest.len());
        visit(half(rest, 2), &rest[4..len]);
        rest = &rest[len.next_multiple_of(4).min(rest.len())..];
    }
}

/// `struct unix_diag_msg` and its attributes (include/uapi/linux/unix_diag.h).
fn parse(body: &[u8]) -> Option<(u32, UnixSocket)> {
    if body.len() < 16 {
        return None;
    }
    let mut socket = UnixSocket {
        listening: body[2] == TCP_LISTEN,
        ..UnixSocket::default()
    };
    let mut queue = (0, 0);
    attributes(&body[16..], &mut |kind, value| match kind {
        2 => socket.peer = Some(word(value, 0)),
        3 => socket.waiting = (0..value.len() / 4).map(|i| word(value, i * 4)).collect(),
        4 => queue = (word(value, 0), word(value, 4)),
        6 => socket.shutdown = value.first().copied().unwrap_or(0),
        _ => {}
    });
    if socket.listening {
        socket.backlog = queue.1;
    }
    Some((word(body, 4), socket))
}

/// Ends the TCP connection between two addresses without a trace, if there is one. Needs `CONFIG_INET_DIAG_DESTROY`;
/// without it the kernel says so, and the connection goes away by its own timers.
///
/// # Errors
/// Those of the kernel, except that there is no such connection.
pub(super) fn destroy_tcp(local: &[u8], remote: &[u8]) -> io::Result<()> {
    let Some(id) = connection(local, remote) else {
        return Ok(());
    };
    let socket = open()?;
    let request = |kind: u16, id: &[u8]| -> io::Result<Vec<u8>> {
        let mut body = vec![local[0], libc::IPPROTO_TCP as u8, 0, 0];
        body.extend_from_slice(&u32::MAX.to_ne_bytes());
        body.extend_from_slice(id);
        send(
            &socket,
            &message(kind, REQUEST | ACK, &body),
            Attachments::default(),
        )?;
        let mut answers = Vec::new();
        while let Some(answer) = receive(&socket, 8192, false)? {
            answers.extend_from_slice(&answer.bytes);
        }
        Ok(answers)
    };
    // The kernel falls back to the listener of that address when there is no connection; that one is to stay.
    let found = request(SOCK_DIAG_BY_FAMILY, &id)?;
    if half(&found, 4) == NLMSG_ERROR || found.len() < 68 || found[17] == TCP_LISTEN {
        return Ok(());
    }
    // `struct inet_diag_msg`: family, state, timer, retransmissions, then the id with the cookie of this one.
    let answer = request(SOCK_DESTROY, &found[20..68])?;
    match word(&answer, 16) {
        0 => Ok(()),
        _ => match errno(&answer[16.min(answer.len())..]) {
            error if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            error => Err(error),
        },
    }
}

/// Ends what is left of TCP connections that no process holds any more (their last words, `TIME_WAIT`) and whose local
/// port is one of these: they would keep it from being bound again. As [`destroy_tcp`] otherwise.
///
/// # Errors
/// Those of the kernel.
pub(super) fn destroy_orphans(ports: &HashSet<u16>) -> io::Result<()> {
    /// Offset and size of the id in `struct inet_diag_msg`, and where the inode number is: 0 for what nobody holds.
    const ID: std::ops::Range<usize> = 4..52;
    const INODE: usize = 68;
    let socket = open()?;
    for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
        // All states but that of a listener.
        let mut request = vec![family, libc::IPPROTO_TCP as u8, 0, 0];
        request.extend_from_slice(&(!(1u32 << TCP_LISTEN)).to_ne_bytes());
        request.extend_from_slice(&[0; 48]);
        let mut found = Vec::new();
        dump(&socket, SOCK_DIAG_BY_FAMILY, &request, &mut |body| {
            if body.len() >= INODE + 4 && word(body, INODE) == 0 && body[1] != TCP_LISTEN {
                found.push(body[ID].to_vec());
            }
        })?;
        for id in found {
            if ports.contains(&u16::from_be_bytes([id[0], id[1]])) {
                destroy(&socket, family, &id)?;
            }
        }
    }
    Ok(())
}

/// Both addresses, as bytes, of every TCP connection to a local port that was not accepted yet.
///
/// # Errors
/// Those of the kernel.
pub(super) fn unaccepted(port: u16) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    const ESTABLISHED: u8 = 1;
    const CLOSE_WAIT: u8 = 8;
    const INODE: usize = 68;
    let socket = open()?;
    let mut found = Vec::new();
    for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
        let mut request = vec![family, libc::IPPROTO_TCP as u8, 0, 0];
        request.extend_from_slice(&(1u32 << ESTABLISHED | 1 << CLOSE_WAIT).to_ne_bytes());
        request.extend_from_slice(&[0; 48]);
        dump(&socket, SOCK_DIAG_BY_FAMILY, &request, &mut |body| {
            // Those that were closed by their program are in other states.
            if body.len() >= INODE + 4 && word(body, INODE) == 0 && body[4..6] == port.to_be_bytes() {
                let address = |port: usize, at: usize| {
                    let mut bytes = u16::from(family).to_ne_bytes().to_vec();
                    bytes.extend_from_slice(&body[port..port + 2]);
                    match i32::from(family) {
                        libc::AF_INET => bytes.extend_from_slice(&body[at..at + 4]),
                        _ => bytes.extend_from_slice(&[&[0; 4], &body[at..at + 16]].concat()),
                    }
                    bytes
                };
                found.push((address(4, 8), address(6, 24)));
            }
        })?;
    }
    Ok(found)
}

fn destroy(socket: &OwnedFd, family: u8, id: &[u8]) -> io::Result<()> {
    let mut body = vec![family, libc::IPPROTO_TCP as u8, 0, 0];
    body.extend_from_slice(&u32::MAX.to_ne_bytes());
    body.extend_from_slice(id);
    send(
        socket,
        &message(SOCK_DESTROY, REQUEST | ACK, &body),
        Attachments::default(),
    )?;
    let answer = receive(socket, 8192, false)?.map_or_else(Vec::new, |answer| answer.bytes);
    match word(&answer, 16) {
        0 => Ok(()),
        _ => match errno(&answer[16.min(answer.len())..]) {
            // Gone meanwhile, or a kernel that cannot.
            error if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EOPNOTSUPP)) => Ok(()),
            error => Err(error),
        },
    }
}

/// `struct inet_diag_sockid`: ports, addresses, interface, cookie.
fn connection(local: &[u8], remote: &[u8]) -> Option<Vec<u8>> {
    let mut id = Vec::with_capacity(48);
    id.extend_from_slice(local.get(2..4)?);
    id.extend_from_slice(remote.get(2..4)?);
    for address in [local, remote] {
        match i32::from(half(address, 0)) {
            libc::AF_INET => {
                id.extend_from_slice(address.get(4..8)?);
                id.extend_from_slice(&[0; 12]);
            }
            libc::AF_INET6 => id.extend_from_slice(address.get(8..24)?),
            _ => return None,
        }
    }
    id.extend_from_slice(&[0; 4]);
    id.extend_from_slice(&[0xff; 8]);
    Some(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn ino(socket: &impl std::os::fd::AsRawFd) -> u32 {
        std::fs::metadata(format!("/proc/self/fd/{}", socket.as_raw_fd()))
            .unwrap()
            .ino() as u32
    }

    #[test]
    fn peers_and_those_who_wait_are_listed() {
        use std::os::unix::net::{UnixListener, UnixStream};
        let (a, b) = UnixStream::pair().unwrap();
        a.shutdown(std::net::Shutdown::Write).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("s")).unwrap();
        let client = UnixStream::connect(dir.path().join("s")).unwrap();
        let sockets = unix_sockets().unwrap();
        assert_eq!(sockets[&ino(&a)].peer, Some(ino(&b)));
        assert_eq!((sockets[&ino(&a)].shutdown, sockets[&ino(&b)].shutdown), (2, 1));
        assert!(sockets[&ino(&listener)].listening);
        assert_eq!(sockets[&ino(&listener)].waiting, [ino(&client)]);
    }

    #[test]
    fn what_nobody_holds_gives_its_port_free() {
        use rustix::net::{AddressFamily, SocketType, socket};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut client = std::net::TcpStream::connect(address).unwrap();
        let (server, _) = listener.accept().unwrap();
        // The one that closes first is left in TIME_WAIT, with the port of the listener.
        drop(server);
        std::io::Read::read(&mut client, &mut [0]).unwrap();
        drop(client);
        let local = deltabox_sys::socket::local_address(&listener).unwrap();
        drop(listener);
        let bind = || {
            let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
            deltabox_sys::socket::bind(&socket, &local)
        };
        assert!(bind().is_err());
        destroy_orphans(&[address.port() ^ 1].into()).unwrap();
        assert!(bind().is_err());
        destroy_orphans(&[address.port()].into()).unwrap();
        bind().unwrap();
    }

    #[test]
    fn connections_are_ended() {
        use std::io::Read;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let local = deltabox_sys::socket::local_address(&client).unwrap();
        let remote = deltabox_sys::socket::peer_address(&client).unwrap();
        match destroy_tcp(&local, &remote) {
            Ok(()) => assert!(client.read(&mut [0]).is_err()),
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP)),
        }
        destroy_tcp(&local, &remote).unwrap();
        let again = std::net::TcpStream::connect(listener.local_addr().unwrap());
        assert!(again.is_ok(), "the listener was ended too");
    }
}
