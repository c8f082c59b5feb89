//! Our own standard streams, on threads of their own, because reading and writing them may block for ever.

use std::io;
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::BorrowedFd;
use rustix::io::Errno;
use tokio::sync::mpsc;

use crate::cli::failure::Failure;
use crate::cli::output::output_failed;
use crate::client::{OutBody, body_channel};

/// Bytes read from standard input at once.
const READ_BYTES: usize = 64 << 10;
/// Pieces of output that may wait for a slow reader; then the daemon's stream is left unread, which stops the command.
const QUEUE_PIECES: usize = 16;

/// The character that means the end of the input at the beginning of a line on a terminal.
const END_OF_TRANSMISSION: u8 = 4;

/// Standard input as a request's body. Its thread is left behind at the end: nothing can wake it from its read.
///
/// A terminal inside does not end with our input, so its end is typed there: twice after a line without an end, the
/// first of which only hands that line over.
pub fn stdin_body(tty: bool) -> OutBody {
    let (mut writer, body) = body_channel();
    std::thread::spawn(move || {
        let mut buffer = vec![0; READ_BYTES];
        let mut last = b'\n';
        while let Ok(length @ 1..) = blocking(rustix::stdio::stdin(), PollFlags::IN, |fd| {
            rustix::io::read(fd, &mut *buffer)
        }) {
            last = buffer[length - 1];
            let sent = io::Write::write_all(&mut writer, &buffer[..length]);
            if sent.and_then(|()| io::Write::flush(&mut writer)).is_err() {
                return;
            }
        }
        if tty {
            let end = [END_OF_TRANSMISSION; 2];
            let end = &end[usize::from(last == b'\n')..];
            // The command may have ended already.
            let _ = io::Write::write_all(&mut writer, end);
        }
        let _ = writer.finish();
    });
    body
}

#[derive(Clone, Copy)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// The thread that writes the command's output to ours.
pub struct Output {
    pieces: mpsc::Sender<(Stream, Vec<u8>)>,
    thread: JoinHandle<io::Result<()>>,
}

impl Output {
    pub fn start() -> Self {
        let (pieces, mut queue) = mpsc::channel::<(Stream, Vec<u8>)>(QUEUE_PIECES);
        let thread = std::thread::spawn(move || {
            while let Some((stream, bytes)) = queue.blocking_recv() {
                write_all(stream, &bytes)?;
            }
            Ok(())
        });
        Self { pieces, thread }
    }

    /// Waits while too much is queued. False if nothing can be written any more; [`Self::finish`] knows why.
    pub async fn write(&self, stream: Stream, bytes: Vec<u8>) -> bool {
        self.pieces.send((stream, bytes)).await.is_ok()
    }

    /// Waits until everything is written.
    pub fn finish(self) -> Result<(), Failure> {
        drop(self.pieces);
        match self.thread.join() {
            Ok(result) => result.map_err(|error| output_failed(&error)),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

fn write_all(stream: Stream, mut bytes: &[u8]) -> io::Result<()> {
    let fd = match stream {
        Stream::Stdout => rustix::stdio::stdout(),
        Stream::Stderr => rustix::stdio::stderr(),
    };
    while !bytes.is_empty() {
        let written = blocking(fd, PollFlags::OUT, |fd| rustix::io::write(fd, bytes))?;
        bytes = &bytes[written..];
    }
    Ok(())
}

/// Repeats a call until it neither was interrupted nor would block: whoever shares our descriptors may have made
/// them non-blocking.
fn blocking(
    fd: BorrowedFd<'static>,
    ready: PollFlags,
    mut call: impl FnMut(BorrowedFd<'static>) -> rustix::io::Result<usize>,
) -> rustix::io::Result<usize> {
    loop {
        match call(fd) {
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => match poll(&mut [PollFd::new(&fd, ready)], None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            },
            result => return result,
        }
    }
}
