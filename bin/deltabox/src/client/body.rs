//! Bodies of requests and answers: whole, or produced and consumed by blocking code.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

/// Chunks that may wait between a producing thread and the connection.
const CHUNKS_MAX: usize = 4;
/// Size of a chunk that blocking code produces.
const CHUNK_BYTES: usize = 64 << 10;

/// Body of a request.
pub enum OutBody {
    Full(Option<Bytes>),
    /// Chunks as they come.
    Stream(mpsc::Receiver<io::Result<Bytes>>),
}

impl OutBody {
    pub fn empty() -> Self {
        Self::Full(None)
    }

    pub fn full(bytes: impl Into<Bytes>) -> Self {
        Self::Full(Some(bytes.into()))
    }
}

impl Body for OutBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match &mut *self {
            Self::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(chunks) => chunks
                .poll_recv(context)
                .map(|chunk| chunk.map(|chunk| chunk.map(Frame::data))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Full(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Stream(_) => SizeHint::default(),
        }
    }
}

/// A body that a thread writes.
pub fn body_channel() -> (BodyWriter, OutBody) {
    let (sender, receiver) = mpsc::channel(CHUNKS_MAX);
    let writer = BodyWriter {
        sender,
        pending: Vec::new(),
        finished: false,
    };
    (writer, OutBody::Stream(receiver))
}

/// Writing end of [`body_channel`]; for use outside the runtime's thread. Dropped before [`Self::finish`], it breaks
/// the request off, so that the daemon does not take a part for the whole.
pub struct BodyWriter {
    sender: mpsc::Sender<io::Result<Bytes>>,
    pending: Vec<u8>,
    finished: bool,
}

impl BodyWriter {
    /// The end of the body.
    pub fn finish(mut self) -> io::Result<()> {
        self.finished = true;
        io::Write::flush(&mut self)
    }
}

impl Drop for BodyWriter {
    fn drop(&mut self) {
        if !self.finished {
            // Nobody listens any more if the request has ended.
            let _ = self
                .sender
                .blocking_send(Err(io::ErrorKind::ConnectionAborted.into()));
        }
    }
}

impl io::Write for BodyWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.pending.extend_from_slice(bytes);
        if self.pending.len() >= CHUNK_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let chunk = Bytes::from(std::mem::take(&mut self.pending));
        // The daemon stops reading when it refuses; its answer says why.
        self.sender
            .blocking_send(Ok(chunk))
            .map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// A streamed answer, read by blocking code.
pub struct BodyReader<'a> {
    runtime: &'a Runtime,
    body: Incoming,
    chunk: Bytes,
}

impl<'a> BodyReader<'a> {
    pub(super) fn new(runtime: &'a Runtime, body: Incoming) -> Self {
        Self {
            runtime,
            body,
            chunk: Bytes::new(),
        }
    }
}

impl io::Read for BodyReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            match self.runtime.block_on(self.body.frame()) {
                None => return Ok(0),
                Some(Err(error)) => return Err(io::Error::other(error)),
                Some(Ok(frame)) => self.chunk = frame.into_data().unwrap_or_default(),
            }
        }
        let length = buffer.len().min(self.chunk.len());
        self.chunk.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}
