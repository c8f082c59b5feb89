//! Brings the loopback interface up, with one rtnetlink message (man 7 rtnetlink).

use std::io;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

const RTM_NEWLINK: u16 = 16;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLMSG_ERROR: u16 = 2;
const IFF_UP: u32 = 1;
/// The loopback interface is the first of every network namespace.
const LOOPBACK: i32 = 1;

/// Sets IFF_UP on interface 1 of the calling process's network namespace.
pub(crate) fn loopback_up() -> io::Result<()> {
    // NETLINK_ROUTE is protocol 0.
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        None,
    )?;
    rustix::net::send(&socket, &up_message(), SendFlags::empty())?;
    let mut answer = [0; 4096];
    let (_, length) = rustix::net::recv(&socket, &mut answer[..], RecvFlags::empty())?;
    let field = |at: usize| -> Option<[u8; 4]> { answer[..length].get(at..at + 4)?.try_into().ok() };
    let kind = field(4).map(|f| u16::from_ne_bytes([f[0], f[1]]));
    match (kind, field(16).map(i32::from_ne_bytes)) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(error)) => Err(io::Error::from_raw_os_error(-error)),
        _ => Err(io::Error::from_raw_os_error(libc::EBADMSG)),
    }
}

/// `struct nlmsghdr` followed by `struct ifinfomsg`.
fn up_message() -> Vec<u8> {
    let mut message = Vec::with_capacity(32);
    message.extend(32u32.to_ne_bytes());
    message.extend(RTM_NEWLINK.to_ne_bytes());
    message.extend((NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    message.extend(1u32.to_ne_bytes());
    message.extend(0u32.to_ne_bytes());
    message.extend([0, 0]);
    message.extend(0u16.to_ne_bytes());
    message.extend(LOOPBACK.to_ne_bytes());
    message.extend(IFF_UP.to_ne_bytes());
    message.extend(IFF_UP.to_ne_bytes());
    message
}
