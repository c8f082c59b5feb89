//! Compressed streams, recognised by their first bytes: media types of real images are too often wrong.

use std::io::{self, BufRead, BufReader, Read};

use crate::error::{Error, Result};
use crate::tar::read::from_io;

/// How a stream is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// As it is.
    None,
    /// gzip, one or more members.
    Gzip,
    /// Zstandard, one or more frames.
    Zstd,
}

/// Largest window a zstd frame may ask for, as a power of two: 128 MiB, what `zstd --long` without
/// further consent decodes.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// What the first bytes say. Other well-known formats are refused by name.
pub(crate) fn detect(start: &[u8], subject: &str) -> Result<Compression> {
    let other = match start {
        [0x1f, 0x8b, ..] => return Ok(Compression::Gzip),
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => return Ok(Compression::Zstd),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => "xz",
        [b'B', b'Z', b'h', ..] => "bzip2",
        [b'P', b'K', 3, 4, ..] => "zip",
        [0x04, 0x22, 0x4d, 0x18, ..] => "lz4",
        _ => return Ok(Compression::None),
    };
    Err(Error::Unsupported {
        what: format!("{other} compression of {subject}"),
        remedy: "pack it with gzip or zstd, or not at all".into(),
    })
}

/// Unpacks a stream, whichever way it is packed.
pub(crate) enum Unpacked<R: Read> {
    None(BufReader<R>),
    Gzip(Box<flate2::bufread::MultiGzDecoder<BufReader<R>>>),
    Zstd(Box<zstd::Decoder<'static, BufReader<R>>>),
}

impl<R: Read> Unpacked<R> {
    pub fn new(reader: R, subject: &str) -> Result<Self> {
        let mut reader = BufReader::with_capacity(128 << 10, reader);
        let start = reader.fill_buf().map_err(|e| from_io(subject, e))?;
        Ok(match detect(start, subject)? {
            Compression::None => Unpacked::None(reader),
            Compression::Gzip => Unpacked::Gzip(Box::new(flate2::bufread::MultiGzDecoder::new(reader))),
            Compression::Zstd => {
                let mut decoder = zstd::Decoder::with_buffer(reader).map_err(|e| from_io(subject, e))?;
                decoder
                    .window_log_max(ZSTD_WINDOW_LOG_MAX)
                    .map_err(|e| from_io(subject, e))?;
                Unpacked::Zstd(Box::new(decoder))
            }
        })
    }

    /// The packed stream, wherever the unpacking stopped.
    pub fn into_packed(self) -> BufReader<R> {
        match self {
            Unpacked::None(r) => r,
            Unpacked::Gzip(r) => r.into_inner(),
            Unpacked::Zstd(r) => r.finish(),
        }
    }
}

impl<R: Read> Read for Unpacked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Unpacked::None(r) => r.read(buffer),
            Unpacked::Gzip(r) => r.read(buffer),
            Unpacked::Zstd(r) => r.read(buffer),
        }
    }
}
