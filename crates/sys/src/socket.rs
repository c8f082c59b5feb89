//! Sockets in the kernel's own terms, for what `rustix` does not offer: options by number with plain integers or
//! byte structures, addresses as the bytes the kernel has, and messages with everything that comes with them.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// `TCP_ZEROCOPY_RECEIVE` (include/uapi/linux/tcp.h): its value holds an address the kernel maps pages at.
const TCP_ZEROCOPY_RECEIVE: i32 = 35;

/// Options whose value holds pointers into our memory: a byte slice must never be able to carry one.
fn holds_pointers(level: i32, name: i32) -> bool {
    match level {
        libc::SOL_SOCKET => {
            matches!(name, libc::SO_ATTACH_FILTER | libc::SO_ATTACH_REUSEPORT_CBPF)
        }
        libc::IPPROTO_TCP => name == TCP_ZEROCOPY_RECEIVE,
        // The tables of netfilter (levels of IP and IPv6, names from 64) hold pointers to counters.
        libc::IPPROTO_IP | libc::IPPROTO_IPV6 => (64..=96).contains(&name),
        _ => false,
    }
}

fn check(level: i32, name: i32) -> io::Result<()> {
    if holds_pointers(level, name) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "this socket option holds pointers",
        ));
    }
    Ok(())
}

/// Reads a socket option into `value`; gives the number of bytes the kernel wrote.
///
/// # Errors
/// Those of getsockopt(2); `InvalidInput` for options whose value holds pointers.
pub fn option(socket: impl AsFd, level: i32, name: i32, value: &mut [u8]) -> io::Result<usize> {
    // The kernel maps pages at an address it finds in the value of this one; others are only written to.
    if level == libc::IPPROTO_TCP && name == TCP_ZEROCOPY_RECEIVE {
        check(level, name)?;
    }
    let mut len = value.len() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `value`, which is that long and exclusively borrowed.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            value.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(len as usize)
}

/// Sets a socket option from bytes.
///
/// # Errors
/// Those of setsockopt(2); `InvalidInput` for options whose value holds pointers.
pub fn set_option(socket: impl AsFd, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    check(level, name)?;
    // SAFETY: the kernel reads `value.len()` bytes from `value`, and the option has no pointers in it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            value.as_ptr().cast(),
            value.len() as libc::socklen_t,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Reads an option that is an `int`.
///
/// # Errors
/// As [`option`].
pub fn int_option(socket: impl AsFd, level: i32, name: i32) -> io::Result<i32> {
    let mut value = [0; 4];
    // A few options (IP_TTL and others at level IP) answer with one byte when that is enough.
    option(socket, level, name, &mut value)?;
    Ok(i32::from_ne_bytes(value))
}

/// Sets an option that is an `int`.
///
/// # Errors
/// As [`set_option`].
pub fn set_int_option(socket: impl AsFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    set_option(socket, level, name, &value.to_ne_bytes())
}

/// Bytes in the receive queue that a read would return (`SIOCINQ`; for datagrams, those of the first one).
///
/// # Errors
/// `EINVAL` on a listening socket, `ENOTTY` on what is not a socket of a kind that knows it.
pub fn input_queue_bytes(socket: impl AsFd) -> io::Result<u32> {
    crate::fd::int_from_ioctl(socket, crate::fd::IntRequest::InputQueue).map(|n| n as u32)
}

/// Bytes in the send queue (`SIOCOUTQ`): of a TCP socket those not acknowledged, of a unix socket the memory taken
/// by what the peer has not read.
///
/// # Errors
/// As [`input_queue_bytes`].
pub fn output_queue_bytes(socket: impl AsFd) -> io::Result<u32> {
    crate::fd::int_from_ioctl(socket, crate::fd::IntRequest::OutputQueue).map(|n| n as u32)
}

/// `SIOCUNIXFILE` (include/uapi/linux/un.h).
const SIOCUNIXFILE: libc::Ioctl = 0x89e0;

/// The socket file a unix socket is bound to, as a descriptor opened with `O_PATH`, wherever that file is by now and
/// even when it has no name any more. `None` when it is not bound to a path. Needs `CAP_NET_ADMIN` over the socket's
/// network namespace.
///
/// # Errors
/// `EPERM` without the capability, `EOPNOTSUPP` and the like on other sockets.
pub fn unix_file(socket: impl AsFd) -> io::Result<Option<OwnedFd>> {
    // SAFETY: the request takes no argument.
    let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), SIOCUNIXFILE, 0) };
    if result < 0 {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::ENOENT | libc::EINVAL) => Ok(None),
            _ => Err(error),
        };
    }
    // SAFETY: the kernel has just made this descriptor for us (close-on-exec), and nobody else has it.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(result) }))
}

/// Room for an address of any family (`struct sockaddr_storage`).
const ADDRESS_MAX: usize = 128;

/// The calls that report an address.
type AskAddress = unsafe extern "C" fn(i32, *mut libc::sockaddr, *mut libc::socklen_t) -> i32;

fn address(socket: BorrowedFd<'_>, ask: AskAddress) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0_u8; ADDRESS_MAX];
    let mut len = ADDRESS_MAX as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `bytes`, which is that long and exclusively borrowed.
    let result = unsafe { ask(socket.as_raw_fd(), bytes.as_mut_ptr().cast(), &raw mut len) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    bytes.truncate((len as usize).min(ADDRESS_MAX));
    Ok(bytes)
}

/// The socket's own address: family first, then what the family has.
///
/// # Errors
/// Those of getsockname(2).
pub fn local_address(socket: impl AsFd) -> io::Result<Vec<u8>> {
    address(socket.as_fd(), libc::getsockname)
}

/// The address of the peer.
///
/// # Errors
/// `ENOTCONN` without one.
pub fn peer_address(socket: impl AsFd) -> io::Result<Vec<u8>> {
    address(socket.as_fd(), libc::getpeername)
}

/// Gives a socket an address.
///
/// # Errors
/// Those of bind(2).
pub fn bind(socket: impl AsFd, address: &[u8]) -> io::Result<()> {
    // SAFETY: the kernel reads `address.len()` bytes from `address`.
    let result = unsafe {
        libc::bind(
            socket.as_fd().as_raw_fd(),
            address.as_ptr().cast(),
            address.len() as libc::socklen_t,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Connects a socket; an address of only a family of 0 (`AF_UNSPEC`) disconnects it.
///
/// # Errors
/// Those of connect(2).
pub fn connect(socket: impl AsFd, address: &[u8]) -> io::Result<()> {
    // SAFETY: the kernel reads `address.len()` bytes from `address`.
    let result = unsafe {
        libc::connect(
            socket.as_fd().as_raw_fd(),
            address.as_ptr().cast(),
            address.len() as libc::socklen_t,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Credentials that come with a message; `pid` 0 means a process that cannot be seen from here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    pub pid: i32,
    pub uid: u32,
    pub gid: u32,
}

/// A received message with everything that came with it.
#[derive(Debug, Default)]
pub struct Message {
    pub bytes: Vec<u8>,
    /// The sender's address; empty when it has none.
    pub sender: Vec<u8>,
    pub descriptors: Vec<OwnedFd>,
    pub credentials: Option<Credentials>,
    /// The message was longer than there was room for.
    pub truncated: bool,
    /// The end of a record (`MSG_EOR`).
    pub end_of_record: bool,
}

/// Room for 253 descriptors (`SCM_MAX_FD`) and credentials.
const CONTROL_MAX: usize = 1280;

/// Receives without waiting, with up to `room` bytes; `None` when there is nothing. With `peek` the message stays.
///
/// # Errors
/// Those of recvmsg(2).
pub fn receive(socket: impl AsFd, room: usize, peek: bool) -> io::Result<Option<Message>> {
    let mut bytes = vec![0_u8; room];
    let mut sender = vec![0_u8; ADDRESS_MAX];
    let mut control = vec![0_u64; CONTROL_MAX / 8];
    let mut vector = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: room,
    };
    // SAFETY: a msghdr of zeros is a valid one with nothing in it.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_name = sender.as_mut_ptr().cast();
    header.msg_namelen = ADDRESS_MAX as libc::socklen_t;
    header.msg_iov = &raw mut vector;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = CONTROL_MAX;
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC | if peek { libc::MSG_PEEK } else { 0 };
    // SAFETY: the header points at buffers of the lengths it states, all of which outlive the call.
    let got = unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut header, flags) };
    if got < 0 {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::WouldBlock {
            Ok(None)
        } else {
            Err(error)
        };
    }
    bytes.truncate((got as usize).min(room));
    sender.truncate((header.msg_namelen as usize).min(ADDRESS_MAX));
    let mut message = Message {
        bytes,
        sender,
        ..Message::default()
    };
    message.truncated = header.msg_flags & libc::MSG_TRUNC != 0;
    message.end_of_record = header.msg_flags & libc::MSG_EOR != 0;
    take_control(&header, &mut message);
    Ok(Some(message))
}

fn take_control(header: &libc::msghdr, message: &mut Message) {
    // SAFETY: the kernel filled the control buffer of `header` and set its length; CMSG_FIRSTHDR and CMSG_NXTHDR stay
    // within it, each record is aligned in it, and its data are as long as its length says. Descriptors in it are
    // new and nobody else's.
    unsafe {
        let mut record = libc::CMSG_FIRSTHDR(header);
        while !record.is_null() {
            let data = libc::CMSG_DATA(record);
            let len = (*record).cmsg_len - libc::CMSG_LEN(0) as usize;
            if (*record).cmsg_level == libc::SOL_SOCKET && (*record).cmsg_type == libc::SCM_RIGHTS {
                for at in 0..len / 4 {
                    let fd = data.cast::<i32>().add(at).read_unaligned();
                    message.descriptors.push(OwnedFd::from_raw_fd(fd));
                }
            }
            if (*record).cmsg_level == libc::SOL_SOCKET
                && (*record).cmsg_type == libc::SCM_CREDENTIALS
                && len >= size_of::<libc::ucred>()
            {
                let credentials = data.cast::<libc::ucred>().read_unaligned();
                let (pid, uid, gid) = (credentials.pid, credentials.uid, credentials.gid);
                message.credentials = Some(Credentials { pid, uid, gid });
            }
            record = libc::CMSG_NXTHDR(header, record);
        }
    }
}

/// What to send along.
#[derive(Clone, Copy, Debug, Default)]
pub struct Attachments<'a> {
    /// Where to; empty for where the socket is connected to.
    pub address: &'a [u8],
    pub descriptors: &'a [BorrowedFd<'a>],
    pub credentials: Option<Credentials>,
    pub end_of_record: bool,
}

/// Sends without waiting and without SIGPIPE; gives the number of bytes taken.
///
/// # Errors
/// Those of sendmsg(2); `WouldBlock` when there is no room.
pub fn send(socket: impl AsFd, bytes: &[u8], with: Attachments<'_>) -> io::Result<usize> {
    let mut control = Vec::new();
    if !with.descriptors.is_empty() {
        let fds: Vec<u8> = with
            .descriptors
            .iter()
            .flat_map(|fd| fd.as_raw_fd().to_ne_bytes())
            .collect();
        push_control(&mut control, libc::SCM_RIGHTS, &fds);
    }
    if let Some(credentials) = with.credentials {
        let fields = [
            credentials.pid.to_ne_bytes(),
            credentials.uid.to_ne_bytes(),
            credentials.gid.to_ne_bytes(),
        ];
        push_control(&mut control, libc::SCM_CREDENTIALS, &fields.concat());
    }
    let mut vector = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: a msghdr of zeros is a valid one with nothing in it.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_name = with.address.as_ptr().cast_mut().cast();
    header.msg_namelen = with.address.len() as libc::socklen_t;
    header.msg_iov = &raw mut vector;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = control.len() * 8;
    let eor = if with.end_of_record { libc::MSG_EOR } else { 0 };
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL | eor;
    // SAFETY: the header points at buffers of the lengths it states, which the kernel only reads.
    let sent = unsafe { libc::sendmsg(socket.as_fd().as_raw_fd(), &raw const header, flags) };
    if sent < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(sent as usize)
    }
}

/// Appends one control message: length, level, type, data, each message at a multiple of 8 bytes.
fn push_control(control: &mut Vec<u64>, kind: i32, data: &[u8]) {
    let mut record = (16 + data.len()).to_ne_bytes().to_vec();
    record.extend_from_slice(&libc::SOL_SOCKET.to_ne_bytes());
    record.extend_from_slice(&kind.to_ne_bytes());
    record.extend_from_slice(data);
    record.resize(record.len().next_multiple_of(8), 0);
    let words = record
        .chunks_exact(8)
        .map(|w| u64::from_ne_bytes([w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7]]));
    control.extend(words);
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    #[test]
    fn integers_go_in_and_out() {
        let (a, b) = socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        assert_eq!(int_option(&a, libc::SOL_SOCKET, libc::SO_PASSCRED).unwrap(), 0);
        set_int_option(&a, libc::SOL_SOCKET, libc::SO_PASSCRED, 1).unwrap();
        assert_eq!(int_option(&a, libc::SOL_SOCKET, libc::SO_PASSCRED).unwrap(), 1);
        rustix::io::write(&a, b"12345").unwrap();
        assert_eq!(input_queue_bytes(&b).unwrap(), 5);
        assert!(output_queue_bytes(&a).unwrap() > 0);
    }

    #[test]
    fn messages_carry_descriptors_and_credentials() {
        let (a, b) = socketpair(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None).unwrap();
        set_int_option(&b, libc::SOL_SOCKET, libc::SO_PASSCRED, 1).unwrap();
        let me = Credentials {
            pid: std::process::id() as i32,
            uid: 0,
            gid: 0,
        };
        let me = Credentials {
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            ..me
        };
        let with = Attachments {
            descriptors: &[a.as_fd(), b.as_fd()],
            credentials: Some(me),
            ..Default::default()
        };
        assert_eq!(send(&a, b"hello", with).unwrap(), 5);
        for peek in [true, false] {
            let message = receive(&b, 64, peek).unwrap().unwrap();
            assert_eq!(message.bytes, b"hello");
            assert_eq!(message.descriptors.len(), 2);
            assert_eq!(message.credentials, Some(me));
        }
        assert!(receive(&b, 64, false).unwrap().is_none());
    }

    #[test]
    fn addresses_are_bytes() {
        use rustix::net::socket;
        let server = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        // Family, port 0, 127.0.0.1.
        let any = [2, 0, 0, 0, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        bind(&server, &any).unwrap();
        rustix::net::listen(&server, 1).unwrap();
        let client = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        connect(&client, &local_address(&server).unwrap()).unwrap();
        assert_eq!(peer_address(&client).unwrap(), local_address(&server).unwrap());
    }

    #[test]
    fn pointers_do_not_pass_as_bytes() {
        let (a, _b) = socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let error = set_option(&a, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &[0; 16]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
