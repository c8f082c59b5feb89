//! UDP sockets: bound, connected, with datagrams waiting.
//!
//! A datagram that waits is put back by sending it again from where it came: as a packet written by hand, since
//! nobody may be left at that address.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use deltabox_sys::socket::{
    Attachments, bind, connect, int_option, local_address, peer_address, receive, send, set_int_option,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType, socket_with};
use serde::{Deserialize, Serialize};

use super::error::{Error, making};
use super::live::Live;
use super::multicast::{self, Group, Membership};
use super::options::{self, Family, Opt};
use super::restore::Restore;
use super::room;
use super::tables::Kind;
use super::tcp::port;

/// A UDP socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// IPv6.
    pub six: bool,
    pub options: Vec<Opt>,
    pub local: Vec<u8>,
    /// Where it is connected to; empty when it is not.
    pub remote: Vec<u8>,
    pub queue: Vec<Datagram>,
    pub memberships: Vec<Membership>,
}

/// A datagram that waits to be received.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Datagram {
    pub bytes: Vec<u8>,
    pub sender: Vec<u8>,
}

/// The longest datagram.
const ROOM: usize = 65536;

pub(super) fn survey(socket: BorrowedFd<'_>) -> Result<Option<(&'static str, &'static str)>, Error> {
    match int_option(socket, libc::IPPROTO_UDP, libc::UDP_ENCAP) {
        Ok(kind) if kind != 0 => {
            return Ok(Some((
                "it is the end of a tunnel inside the kernel",
                "close it before the checkpoint",
            )));
        }
        _ => {}
    }
    let mut asked = [PollFd::from_borrowed_fd(socket, PollFlags::empty())];
    poll(&mut asked, Some(&Timespec::default())).map_err(making("a UDP socket"))?;
    Ok(asked[0].revents().contains(PollFlags::ERR).then_some((
        "an error waits in it, which cannot be looked at without taking it out",
        "have the program receive from it, and try again",
    )))
}

pub(super) fn capture(live: &Live, socket: BorrowedFd<'_>, groups: &[Group]) -> Result<State, Error> {
    let take = || -> io::Result<State> {
        let (mut state, is_hidden) = look(socket, groups)?;
        if is_hidden {
            state.queue = drain(socket)?;
            room::inside(live, None, || refill(&state))?;
        }
        Ok(state)
    };
    take().map_err(making("a UDP socket"))
}

/// The state as far as it can be seen: with `true`, the queue has to be taken out to be seen.
fn look(socket: BorrowedFd<'_>, groups: &[Group]) -> io::Result<(State, bool)> {
    let local = local_address(socket)?;
    let six = local.first() == Some(&(libc::AF_INET6 as u8));
    let (queue, is_hidden) = peek(socket)?;
    let state = State {
        six,
        options: options::read(socket, Family::Udp { six })?,
        local,
        remote: peer_address(socket).unwrap_or_default(),
        queue,
        memberships: multicast::read(socket, groups, six)?,
    };
    Ok((state, is_hidden))
}

/// Looks at all datagrams with a moving offset, and takes none. An empty one that has been looked at is passed over the
/// next time: with `true` there are some, and perhaps more than are seen.
fn peek(socket: BorrowedFd<'_>) -> io::Result<(Vec<Datagram>, bool)> {
    let offset = int_option(socket, libc::SOL_SOCKET, libc::SO_PEEK_OFF)?;
    let set = |offset| set_int_option(socket, libc::SOL_SOCKET, libc::SO_PEEK_OFF, offset);
    if offset >= 0 {
        set(-1)?;
    }
    let found = match receive(socket, 0, true) {
        Ok(None) => Ok((Vec::new(), false)),
        Ok(Some(first)) if !first.truncated => Ok((Vec::new(), true)),
        Ok(Some(_)) => set(0).and_then(|()| read_on(socket)),
        Err(e) => Err(e),
    };
    set(offset)?;
    let (queue, is_hidden) = found?;
    // Where the program looks at offsets itself, it may have made empty ones disappear.
    let may_hide = offset >= 0 && !queue.is_empty();
    Ok((queue, is_hidden || may_hide))
}

fn read_on(socket: BorrowedFd<'_>) -> io::Result<(Vec<Datagram>, bool)> {
    let (mut found, mut is_hidden) = (Vec::new(), false);
    while let Some(message) = receive(socket, ROOM, true)? {
        is_hidden |= message.bytes.is_empty();
        found.push(Datagram {
            bytes: message.bytes,
            sender: message.sender,
        });
    }
    Ok((found, is_hidden))
}

/// Takes everything out.
fn drain(socket: BorrowedFd<'_>) -> io::Result<Vec<Datagram>> {
    let mut found = Vec::new();
    while let Some(message) = receive(socket, ROOM, false)? {
        found.push(Datagram {
            bytes: message.bytes,
            sender: message.sender,
        });
    }
    Ok(found)
}

fn wanted_sockets<'a>(restore: &Restore<'a>) -> Vec<(usize, &'a State)> {
    let all = restore.wanted.descriptions.iter().enumerate();
    all.filter_map(|(wanted, d)| match &d.kind {
        Kind::Udp(state) => Some((wanted, state)),
        _ => None,
    })
    .collect()
}

/// Lets go of sockets that have another address by now.
pub(super) fn release_unfit(restore: &mut Restore<'_>) -> Result<(), Error> {
    for (wanted, state) in wanted_sockets(restore) {
        let Some(live) = restore.kept[wanted] else {
            continue;
        };
        let socket = restore.live.duplicate(live)?;
        let local = local_address(&socket).map_err(making("a UDP socket"))?;
        let remote = peer_address(&socket).unwrap_or_default();
        if (&local, &remote) != (&state.local, &state.remote) {
            restore.kept[wanted] = None;
        }
    }
    Ok(())
}

pub(super) fn restore_all(restore: &mut Restore<'_>) -> Result<(), Error> {
    let sockets = wanted_sockets(restore);
    for &(wanted, state) in &sockets {
        if restore.kept[wanted].is_none() {
            let made = room::inside(restore.live, None, || make(state));
            restore.made[wanted] = Some(made.map_err(making(restore.show(wanted)))?);
        }
    }
    if sockets.is_empty() {
        return Ok(());
    }
    let groups = multicast::groups(restore.live).map_err(making("multicast groups"))?;
    for (wanted, state) in sockets {
        let socket = restore.object(wanted)?;
        let failed = || making(restore.show(wanted));
        // Takes away an error of the time that is undone.
        int_option(socket, libc::SOL_SOCKET, libc::SO_ERROR).map_err(failed())?;
        if peek(socket).map_err(failed())? != (state.queue.clone(), false) {
            drain(socket).map_err(failed())?;
            room::inside(restore.live, None, || refill(state)).map_err(failed())?;
        }
        multicast::restore(restore.live, socket, &groups, state.six, &state.memberships).map_err(failed())?;
        let family = Family::Udp { six: state.six };
        options::restore(socket, family, &state.options).map_err(failed())?;
    }
    Ok(())
}

fn make(state: &State) -> io::Result<OwnedFd> {
    let family = if state.six {
        AddressFamily::INET6
    } else {
        AddressFamily::INET
    };
    let socket = socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let before_bind = |o: &&Opt| {
        matches!(
            (o.level, o.name),
            (libc::SOL_SOCKET, libc::SO_REUSEADDR | libc::SO_REUSEPORT)
                | (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY)
        )
    };
    let early: Vec<Opt> = state.options.iter().filter(before_bind).cloned().collect();
    options::set_some(socket.as_fd(), &early)?;
    if port(&state.local) != 0 {
        bind(&socket, &state.local)?;
    }
    if !state.remote.is_empty() {
        connect(&socket, &state.remote)?;
    }
    Ok(socket)
}

/// Sends every datagram again, from its sender's address to the socket's.
fn refill(state: &State) -> io::Result<()> {
    for datagram in &state.queue {
        let to = destination(&state.local, &datagram.sender);
        let (family, packet, target) = packet(&datagram.sender, &to, &datagram.bytes)?;
        let raw = Protocol::from_raw(
            std::num::NonZeroU32::new(libc::IPPROTO_RAW as u32).ok_or(io::ErrorKind::Other)?,
        );
        let socket = socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, Some(raw))?;
        send(
            &socket,
            &packet,
            Attachments {
                address: &target,
                ..Attachments::default()
            },
        )?;
    }
    Ok(())
}

/// A socket bound to any address is reached at the one of the loopback.
fn destination(local: &[u8], sender: &[u8]) -> Vec<u8> {
    let mut to = local.to_vec();
    let is_six = local.first() == Some(&(libc::AF_INET6 as u8));
    if is_six && local[8..24] == [0; 16] {
        to[8..24].copy_from_slice(&std::net::Ipv6Addr::LOCALHOST.octets());
        if is_mapped(sender) {
            to[8..24].copy_from_slice(&std::net::Ipv4Addr::LOCALHOST.to_ipv6_mapped().octets());
        }
    } else if !is_six && local[4..8] == [0; 4] {
        to[4..8].copy_from_slice(&std::net::Ipv4Addr::LOCALHOST.octets());
    }
    to
}

fn is_mapped(address: &[u8]) -> bool {
    address.first() == Some(&(libc::AF_INET6 as u8))
        && address[8..20] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]
}

/// A whole IP packet. The checksum of UDP may be left out on IPv4, not on IPv6.
fn packet(from: &[u8], to: &[u8], bytes: &[u8]) -> io::Result<(AddressFamily, Vec<u8>, Vec<u8>)> {
    let len = u16::try_from(bytes.len() + 8).map_err(io::Error::other)?;
    let mut udp = [&from[2..4], &to[2..4], &len.to_be_bytes(), &[0, 0], bytes].concat();
    let four = |a: &[u8]| {
        if is_mapped(a) {
            a[20..24].to_vec()
        } else {
            a[4..8].to_vec()
        }
    };
    if from.first() == Some(&(libc::AF_INET as u8)) || is_mapped(from) {
        let total = len.checked_add(20).ok_or(io::ErrorKind::InvalidInput)?;
        let mut packet = vec![0x45, 0];
        packet.extend_from_slice(&total.to_be_bytes());
        packet.extend_from_slice(&[0, 0, 0, 0, 64, libc::IPPROTO_UDP as u8, 0, 0]);
        packet.extend_from_slice(&four(from));
        packet.extend_from_slice(&four(to));
        packet.extend_from_slice(&udp);
        let mut target = (libc::AF_INET as u16).to_ne_bytes().to_vec();
        target.extend_from_slice(&[0, 0]);
        target.extend_from_slice(&four(to));
        target.extend_from_slice(&[0; 8]);
        return Ok((AddressFamily::INET, packet, target));
    }
    let sum = checksum(&from[8..24], &to[8..24], &udp);
    udp[6..8].copy_from_slice(&sum.to_be_bytes());
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend_from_slice(&len.to_be_bytes());
    packet.extend_from_slice(&[libc::IPPROTO_UDP as u8, 64]);
    packet.extend_from_slice(&from[8..24]);
    packet.extend_from_slice(&to[8..24]);
    packet.extend_from_slice(&udp);
    let mut target = to.to_vec();
    // A raw socket takes no port.
    target[2..4].copy_from_slice(&[0, 0]);
    Ok((AddressFamily::INET6, packet, target))
}

/// The checksum of UDP over IPv6, with its pseudo header (RFC 8200, 8.1).
fn checksum(from: &[u8], to: &[u8], udp: &[u8]) -> u16 {
    let len = (udp.len() as u32).to_be_bytes();
    let header = [from, to, &len, &[0, 0, 0, libc::IPPROTO_UDP as u8]].concat();
    let words = |bytes: &[u8]| {
        bytes
            .chunks(2)
            .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])))
            .sum::<u32>()
    };
    let mut sum = words(&header) + words(udp);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    match !(sum as u16) {
        0 => 0xffff,
        sum => sum,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams_come_again_from_their_sender() {
        for (any, local) in [
            ("127.0.0.1:0", "127.0.0.1"),
            ("[::1]:0", "::1"),
            ("0.0.0.0:0", "127.0.0.1"),
        ] {
            let socket = std::net::UdpSocket::bind(any).unwrap();
            let port = socket.local_addr().unwrap().port();
            let sender = std::net::UdpSocket::bind((local, 0)).unwrap();
            sender.send_to(b"one", (local, port)).unwrap();
            sender.send_to(b"number two", (local, port)).unwrap();
            let state = look(socket.as_fd(), &[]).unwrap().0;
            assert_eq!(state.queue.len(), 2);
            let from = sender.local_addr().unwrap();
            drop(sender);
            let mut buffer = [0; 64];
            for _ in 0..2 {
                socket.recv_from(&mut buffer).unwrap();
            }
            refill(&state).unwrap();
            for text in [&b"one"[..], b"number two"] {
                let (n, again) = socket.recv_from(&mut buffer).unwrap();
                assert_eq!((&buffer[..n], again), (text, from));
            }
        }
    }
}
