//! Pipes: content, capacity, packets. FIFOs have the same inside and a name besides.
//!
//! Content is looked at with tee(2), which takes nothing out. The work is done through ends that our side opens
//! for the moment, so that neither the offsets nor the flags of the program's own descriptions are touched, and
//! an end that the program has closed already does not matter.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use deltabox_sys::fd::{IntRequest, int_from_ioctl};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with, tee};
use serde::{Deserialize, Serialize};

use super::error::{Error, making};
use super::place::reopen;
use super::tables::ObjectKey;

/// A pipe or the inside of a FIFO.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Its inode number is not used again before the next boot.
    pub object: ObjectKey,
    /// Bytes, as `F_GETPIPE_SZ` says.
    pub capacity: u32,
    /// What was written and not yet read, oldest first.
    pub content: Vec<Chunk>,
}

/// A piece of content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    pub bytes: Vec<u8>,
    /// Written in packet mode (`O_DIRECT`): a read returns it alone.
    pub packet: bool,
}

/// One end; reading or writing is in the flags of the description.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Position in [`Tables::pipes`](super::tables::Tables::pipes).
    pub pipe: u32,
}

const READ: u32 = (libc::O_RDONLY | libc::O_NONBLOCK) as u32;
const WRITE: u32 = (libc::O_WRONLY | libc::O_NONBLOCK) as u32;

pub(super) fn capture(end: BorrowedFd<'_>, object: ObjectKey) -> Result<State, Error> {
    let look = || -> Result<State, Errno> {
        let capacity = fcntl_getpipe_size(end)? as u32;
        let pending = int_from_ioctl(end, IntRequest::InputQueue)
            .map_err(|e| Errno::from_raw_os_error(e.raw_os_error().unwrap_or(0)))?;
        let content = if pending > 0 {
            peek(end, capacity)?
        } else {
            Vec::new()
        };
        Ok(State {
            object,
            capacity,
            content,
        })
    };
    look().map_err(making("the content of a pipe"))
}

/// Reads the content without taking it out.
///
/// A read never goes beyond the end of a packet. To tell a packet from a stream even when it is the last thing in
/// the pipe, one more byte is put behind the copy: a stream runs on into it.
fn peek(end: BorrowedFd<'_>, capacity: u32) -> Result<Vec<Chunk>, Errno> {
    let reads = fcntl_getfl(end)? & OFlags::RWMODE != OFlags::WRONLY;
    let opened = if reads { None } else { Some(reopen(end, READ)?) };
    let source = opened.as_ref().map_or(end, |opened| opened.as_fd());
    let (copy, into) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    fcntl_setpipe_size(&into, capacity as usize)?;
    let mut rest = tee(source, &into, capacity as usize, SpliceFlags::NONBLOCK)?;
    // One more page, which the limit for pipes may forbid; then a full pipe is taken for a stream.
    let grown = fcntl_setpipe_size(&into, capacity as usize * 2).is_ok();
    let marked = match rustix::io::write(&into, b"|") {
        Ok(_) => true,
        Err(Errno::AGAIN) if !grown => false,
        Err(e) => return Err(e),
    };
    let mut chunks = Vec::new();
    let mut buffer = vec![0; capacity as usize + 1];
    while rest > 0 {
        let n = rustix::io::read(&copy, &mut buffer)?;
        let packet = n < rest || (marked && n == rest);
        let n = n.min(rest);
        chunks.push(Chunk {
            bytes: buffer[..n].to_vec(),
            packet,
        });
        rest -= n;
    }
    Ok(chunks)
}

/// Makes a live pipe hold the wanted content, if it does not already.
pub(super) fn restore(wanted: &State, end: BorrowedFd<'_>) -> Result<(), Error> {
    let now = capture(end, wanted.object)?;
    if now == *wanted {
        return Ok(());
    }
    let put_back = || -> Result<(), Errno> {
        // The read end is open for as long as we write, or there would be nobody to write to.
        let read = reopen(end, READ)?;
        if !now.content.is_empty() {
            drain(&read)?;
        }
        if now.capacity != wanted.capacity {
            fcntl_setpipe_size(&read, wanted.capacity as usize)?;
        }
        fill(wanted, end)
    };
    put_back().map_err(making("the content of a pipe"))
}

fn drain(read: &OwnedFd) -> Result<(), Errno> {
    let mut buffer = vec![0; 65536];
    loop {
        match rustix::io::read(read, &mut buffer) {
            Ok(0) | Err(Errno::AGAIN) => return Ok(()),
            Ok(_) => {}
            Err(e) => return Err(e),
        }
    }
}

fn fill(wanted: &State, end: BorrowedFd<'_>) -> Result<(), Errno> {
    for chunk in &wanted.content {
        let write = reopen(end, WRITE)?;
        if chunk.packet {
            fcntl_setfl(&write, OFlags::NONBLOCK | OFlags::DIRECT)?;
        }
        let mut rest = chunk.bytes.as_slice();
        while !rest.is_empty() {
            let n = rustix::io::write(&write, rest)?;
            rest = &rest[n..];
        }
    }
    Ok(())
}

/// A new pipe with that content; the ends of the program are opened from the descriptor returned.
pub(super) fn make(wanted: &State) -> Result<OwnedFd, Error> {
    let make = || -> Result<OwnedFd, Errno> {
        let (read, _write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        fcntl_setpipe_size(&read, wanted.capacity as usize)?;
        fill(wanted, read.as_fd())?;
        Ok(read)
    };
    make().map_err(making("a pipe"))
}

/// An end of a pipe with these flags, from any end of it.
pub(super) fn open_end(any: BorrowedFd<'_>, flags: u32) -> Result<OwnedFd, Error> {
    // Opening blocks until the other end is open, unless told not to, and packet mode can only be set on an open
    // end; the flags are put right afterwards.
    let flags = (flags & !(libc::O_DIRECT as u32)) | libc::O_NONBLOCK as u32;
    let fd = reopen(any, flags).map_err(making("an end of a pipe"))?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object() -> ObjectKey {
        ObjectKey { dev: 1, ino: 1 }
    }

    #[test]
    fn looking_takes_nothing_out() {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        rustix::io::write(&write, b"hello").unwrap();
        let state = capture(write.as_fd(), object()).unwrap();
        assert_eq!(
            state.content,
            [Chunk {
                bytes: b"hello".to_vec(),
                packet: false
            }]
        );
        assert_eq!(capture(read.as_fd(), object()).unwrap(), state);
        let mut buffer = [0; 16];
        assert_eq!(rustix::io::read(&read, &mut buffer).unwrap(), 5);
    }

    #[test]
    fn content_and_capacity_come_back() {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        fcntl_setpipe_size(&write, 16384).unwrap();
        rustix::io::write(&write, &[7; 10_000]).unwrap();
        let wanted = capture(read.as_fd(), object()).unwrap();
        let mut buffer = [0; 9_000];
        rustix::io::read(&read, &mut buffer).unwrap();
        rustix::io::write(&write, b"later").unwrap();
        fcntl_setpipe_size(&write, 65536).unwrap();
        restore(&wanted, write.as_fd()).unwrap();
        assert_eq!(capture(read.as_fd(), object()).unwrap(), wanted);
        let made = make(&wanted).unwrap();
        assert_eq!(capture(made.as_fd(), object()).unwrap(), wanted);
    }

    #[test]
    fn packets_stay_apart() {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::DIRECT).unwrap();
        for packet in [&b"one"[..], b"two!", b"three"] {
            rustix::io::write(&write, packet).unwrap();
        }
        let wanted = capture(read.as_fd(), object()).unwrap();
        assert_eq!(wanted.content.len(), 3);
        let made = make(&wanted).unwrap();
        let mut buffer = [0; 64];
        for len in [3, 4, 5] {
            assert_eq!(rustix::io::read(&made, &mut buffer).unwrap(), len);
        }
        assert_eq!(
            rustix::io::read(&read, &mut buffer).unwrap(),
            3,
            "looking took packets out"
        );
    }

    #[test]
    fn a_pipe_without_a_writer_comes_back_full() {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        rustix::io::write(&write, b"last words").unwrap();
        drop(write);
        let wanted = capture(read.as_fd(), object()).unwrap();
        let mut buffer = [0; 64];
        rustix::io::read(&read, &mut buffer).unwrap();
        restore(&wanted, read.as_fd()).unwrap();
        assert_eq!(rustix::io::read(&read, &mut buffer).unwrap(), 10);
        assert_eq!(
            rustix::io::read(&read, &mut buffer).unwrap(),
            0,
            "a writer was left behind"
        );
    }
}
