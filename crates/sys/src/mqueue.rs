//! POSIX message queues of the calling thread's IPC namespace.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// How large a queue is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// How many messages it may hold.
    pub messages: i64,
    /// How many bytes each may have.
    pub bytes: i64,
}

/// `struct mq_attr` (include/uapi/linux/mqueue.h).
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Attributes {
    flags: i64,
    max_messages: i64,
    message_size: i64,
    messages: i64,
    reserved: [i64; 4],
}

fn check(result: libc::c_long) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Makes a queue of this name (without a slash), opened for both directions, never waiting.
///
/// # Errors
/// `EEXIST` when there is one, `EMFILE` beyond `RLIMIT_MSGQUEUE`.
pub fn make(name: &CStr, mode: u32, size: Size) -> io::Result<OwnedFd> {
    let attributes = Attributes {
        max_messages: size.messages,
        message_size: size.bytes,
        ..Attributes::default()
    };
    let flags = libc::O_CREAT | libc::O_EXCL | libc::O_RDWR | libc::O_NONBLOCK | libc::O_CLOEXEC;
    // SAFETY: the name is a C string and the attributes are a live structure of the type the call reads.
    let fd = check(unsafe {
        libc::syscall(
            libc::SYS_mq_open,
            name.as_ptr(),
            flags,
            mode,
            &raw const attributes,
        )
    })?;
    // SAFETY: the kernel has just given out this descriptor, to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// How large a queue is, and how many messages are in it.
///
/// # Errors
/// `EBADF` when this is no queue.
pub fn size(queue: impl AsFd) -> io::Result<(Size, i64)> {
    let mut now = Attributes::default();
    let fd = queue.as_fd().as_raw_fd();
    let none = std::ptr::null::<Attributes>();
    // SAFETY: nothing is set, and `now` is a live structure of the type the call fills.
    check(unsafe { libc::syscall(libc::SYS_mq_getsetattr, fd, none, &raw mut now) })?;
    let size = Size {
        messages: now.max_messages,
        bytes: now.message_size,
    };
    Ok((size, now.messages))
}

/// Takes out the first message: priority and text. `room` is what [`size`] says of a message.
///
/// # Errors
/// `EAGAIN` when there is none and the descriptor does not wait.
pub fn receive(queue: impl AsFd, room: usize) -> io::Result<(u32, Vec<u8>)> {
    let mut text = vec![0; room];
    let mut priority = 0_u32;
    let fd = queue.as_fd().as_raw_fd();
    let forever = std::ptr::null::<libc::timespec>();
    // SAFETY: the buffer has `room` bytes, and the priority is a live integer.
    let got = check(unsafe {
        libc::syscall(
            libc::SYS_mq_timedreceive,
            fd,
            text.as_mut_ptr(),
            room,
            &raw mut priority,
            forever,
        )
    })?;
    text.truncate(got);
    Ok((priority, text))
}

/// Puts in a message.
///
/// # Errors
/// `EAGAIN` when there is no room and the descriptor does not wait.
pub fn send(queue: impl AsFd, priority: u32, text: &[u8]) -> io::Result<()> {
    let fd = queue.as_fd().as_raw_fd();
    let forever = std::ptr::null::<libc::timespec>();
    // SAFETY: the kernel reads as many bytes as there are.
    check(unsafe {
        libc::syscall(
            libc::SYS_mq_timedsend,
            fd,
            text.as_ptr(),
            text.len(),
            priority,
            forever,
        )
    })
    .map(drop)
}
