//! Socket options and requests that `rustix` does not offer: by number, with plain integers or byte structures.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

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
    check(level, name)?;
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
