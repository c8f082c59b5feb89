//! Socket options: read as the kernel gives them, set back where they differ.

use std::io;
use std::os::fd::BorrowedFd;

use deltabox_sys::socket::{option, set_option};
use serde::{Deserialize, Serialize};

/// One option of a socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opt {
    pub level: i32,
    pub name: i32,
    pub value: Vec<u8>,
}

/// What there is to read: level, name, longest value.
type Known = (i32, i32, usize);

const SOL_SOCKET: i32 = libc::SOL_SOCKET;

/// Of every socket. Buffer sizes are apart ([`buffers`]): the kernel doubles them and adapts them itself.
const GENERAL: &[Known] = &[
    (SOL_SOCKET, libc::SO_REUSEADDR, 4),
    (SOL_SOCKET, libc::SO_REUSEPORT, 4),
    (SOL_SOCKET, libc::SO_KEEPALIVE, 4),
    (SOL_SOCKET, libc::SO_BROADCAST, 4),
    (SOL_SOCKET, libc::SO_DONTROUTE, 4),
    (SOL_SOCKET, libc::SO_OOBINLINE, 4),
    (SOL_SOCKET, libc::SO_LINGER, 8),
    (SOL_SOCKET, libc::SO_PASSCRED, 4),
    (SOL_SOCKET, libc::SO_PRIORITY, 4),
    (SOL_SOCKET, libc::SO_MARK, 4),
    (SOL_SOCKET, libc::SO_RCVLOWAT, 4),
    (SOL_SOCKET, libc::SO_RCVTIMEO, 16),
    (SOL_SOCKET, libc::SO_SNDTIMEO, 16),
    (SOL_SOCKET, libc::SO_TIMESTAMP, 4),
    (SOL_SOCKET, libc::SO_TIMESTAMPNS, 4),
    (SOL_SOCKET, libc::SO_RXQ_OVFL, 4),
    (SOL_SOCKET, libc::SO_PEEK_OFF, 4),
];

const IP: &[Known] = &[
    (libc::IPPROTO_IP, libc::IP_TOS, 4),
    (libc::IPPROTO_IP, libc::IP_TTL, 4),
    (libc::IPPROTO_IP, libc::IP_PKTINFO, 4),
    (libc::IPPROTO_IP, libc::IP_RECVTTL, 4),
    (libc::IPPROTO_IP, libc::IP_RECVTOS, 4),
    (libc::IPPROTO_IP, libc::IP_RECVERR, 4),
    (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, 4),
    (libc::IPPROTO_IP, libc::IP_FREEBIND, 4),
    (libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 4),
    (SOL_SOCKET, libc::SO_BINDTODEVICE, 16),
];

const IP6: &[Known] = &[
    (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 4),
    (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, 4),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 4),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 4),
    (libc::IPPROTO_IPV6, libc::IPV6_TCLASS, 4),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 4),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT, 4),
];

const TCP: &[Known] = &[
    (libc::IPPROTO_TCP, libc::TCP_NODELAY, 4),
    (libc::IPPROTO_TCP, libc::TCP_CORK, 4),
    (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, 4),
    (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, 4),
    (libc::IPPROTO_TCP, libc::TCP_KEEPCNT, 4),
    (libc::IPPROTO_TCP, libc::TCP_SYNCNT, 4),
    (libc::IPPROTO_TCP, libc::TCP_LINGER2, 4),
    (libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 4),
    (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, 4),
    (libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, 4),
    (libc::IPPROTO_TCP, libc::TCP_CONGESTION, 16),
];

// include/uapi/linux/in.h, in6.h
const IP_MULTICAST_ALL: i32 = 49;
const IPV6_MULTICAST_ALL: i32 = 29;

const UDP: &[Known] = &[
    (libc::IPPROTO_UDP, libc::UDP_SEGMENT, 4),
    (libc::IPPROTO_UDP, libc::UDP_GRO, 4),
    (libc::IPPROTO_IP, libc::IP_MULTICAST_TTL, 4),
    (libc::IPPROTO_IP, libc::IP_MULTICAST_LOOP, 4),
    (libc::IPPROTO_IP, libc::IP_MULTICAST_IF, 4),
    (libc::IPPROTO_IP, IP_MULTICAST_ALL, 4),
];

const UDP6: &[Known] = &[
    (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS, 4),
    (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_LOOP, 4),
    (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_IF, 4),
    (libc::IPPROTO_IPV6, IPV6_MULTICAST_ALL, 4),
];

const NETLINK: &[Known] = &[
    (libc::SOL_NETLINK, libc::NETLINK_PKTINFO, 4),
    (libc::SOL_NETLINK, libc::NETLINK_BROADCAST_ERROR, 4),
    (libc::SOL_NETLINK, libc::NETLINK_NO_ENOBUFS, 4),
    (libc::SOL_NETLINK, libc::NETLINK_CAP_ACK, 4),
    (libc::SOL_NETLINK, 11, 4),
    (libc::SOL_NETLINK, 12, 4),
];

/// Which options a socket has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Unix,
    Tcp { six: bool },
    Udp { six: bool },
    Netlink,
}

impl Family {
    fn lists(self) -> [&'static [Known]; 5] {
        let ip6 = |six: bool| if six { IP6 } else { &[] };
        match self {
            Family::Unix => [GENERAL, &[], &[], &[], &[]],
            Family::Tcp { six } => [GENERAL, IP, ip6(six), TCP, &[]],
            Family::Udp { six } => [GENERAL, IP, ip6(six), UDP, if six { UDP6 } else { &[] }],
            Family::Netlink => [GENERAL, NETLINK, &[], &[], &[]],
        }
    }
}

/// Reads all options of a socket, except those that are all zero, which most are.
pub(super) fn read(socket: BorrowedFd<'_>, family: Family) -> io::Result<Vec<Opt>> {
    let mut found = Vec::new();
    for &(level, name, room) in family.lists().into_iter().flatten() {
        let mut value = vec![0; room];
        match option(socket, level, name, &mut value) {
            Ok(len) => {
                // A few options of IP answer with one byte; they are set with an int all the same.
                value.truncate(if len < 4 { room.min(4) } else { len });
                if value.iter().all(|&byte| byte == 0) {
                    continue;
                }
                found.push(Opt { level, name, value });
            }
            Err(e) if is_unknown(&e) => {}
            Err(e) => return Err(e),
        }
    }
    found.extend(buffers(socket)?);
    Ok(found)
}

fn is_unknown(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOPROTOOPT | libc::EOPNOTSUPP | libc::EINVAL | libc::ENOTCONN)
    )
}

/// `SO_BUF_LOCK`: bit 0 and 1 tell that the program has set the size of the send and receive buffer.
const SO_BUF_LOCK: i32 = 72;

/// Sizes that the program has set; others are the kernel's own affair.
fn buffers(socket: BorrowedFd<'_>) -> io::Result<Vec<Opt>> {
    let mut found = Vec::new();
    let mut locked = vec![0; 4];
    match option(socket, SOL_SOCKET, SO_BUF_LOCK, &mut locked) {
        Ok(_) => {}
        Err(e) if is_unknown(&e) => return Ok(found),
        Err(e) => return Err(e),
    }
    for (bit, name) in [(1, libc::SO_SNDBUF), (2, libc::SO_RCVBUF)] {
        if locked[0] & bit != 0 {
            let mut value = vec![0; 4];
            option(socket, SOL_SOCKET, name, &mut value)?;
            found.push(Opt {
                level: SOL_SOCKET,
                name,
                value,
            });
        }
    }
    if locked[0] != 0 {
        found.push(Opt {
            level: SOL_SOCKET,
            name: SO_BUF_LOCK,
            value: locked,
        });
    }
    Ok(found)
}

/// Sets every option that differs from the wanted one.
pub(super) fn restore(socket: BorrowedFd<'_>, family: Family, wanted: &[Opt]) -> io::Result<()> {
    let now = read(socket, family)?;
    let is_wanted = |o: &&Opt| wanted.iter().any(|w| (w.level, w.name) == (o.level, o.name));
    let cleared = now.iter().filter(|o| !is_wanted(o)).map(|o| Opt {
        value: vec![0; o.value.len()],
        ..*o
    });
    for opt in wanted.iter().cloned().chain(cleared) {
        // Settled when the socket is bound, and set by then.
        let is_settled = (opt.level, opt.name) == (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY);
        if is_settled || now.contains(&opt) {
            continue;
        }
        set(socket, &opt).map_err(|e| {
            io::Error::new(
                e.kind(),
                format!("socket option {} of level {}: {e}", opt.name, opt.level),
            )
        })?;
    }
    Ok(())
}

/// Sets these options and leaves all others alone.
pub(super) fn set_some(socket: BorrowedFd<'_>, wanted: &[Opt]) -> io::Result<()> {
    wanted.iter().try_for_each(|opt| set(socket, opt))
}

fn set(socket: BorrowedFd<'_>, opt: &Opt) -> io::Result<()> {
    let forced = match (opt.level, opt.name) {
        (SOL_SOCKET, libc::SO_SNDBUF) => Some(libc::SO_SNDBUFFORCE),
        (SOL_SOCKET, libc::SO_RCVBUF) => Some(libc::SO_RCVBUFFORCE),
        _ => None,
    };
    match (forced, <[u8; 4]>::try_from(opt.value.as_slice())) {
        // The kernel reports twice what it was given.
        (Some(_), Ok([0, 0, 0, 0])) => Ok(()),
        (Some(name), Ok(bytes)) => set_option(
            socket,
            SOL_SOCKET,
            name,
            &(i32::from_ne_bytes(bytes) / 2).to_ne_bytes(),
        ),
        _ => set_option(socket, opt.level, opt.name, &opt.value),
    }
}

/// Is a packet filter attached? It could not be read out in full.
pub(super) fn has_filter(socket: BorrowedFd<'_>) -> bool {
    let mut nothing = [];
    match option(socket, SOL_SOCKET, libc::SO_ATTACH_FILTER, &mut nothing) {
        Ok(instructions) => instructions > 0,
        // An extended one is there but cannot be read.
        Err(e) => e.raw_os_error() == Some(libc::EACCES),
    }
}
