//! SHA-256 digests, and readers that count, hash and bound what passes through them.

use std::cell::Cell;
use std::fmt;
use std::io::{self, Read, Write};
use std::rc::Rc;

use sha2::{Digest as _, Sha256};

use crate::error::Error;
use crate::limits::{Limits, limit};

/// A SHA-256 digest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of bytes in memory.
    pub fn of(bytes: &[u8]) -> Self {
        Digest(Sha256::digest(bytes).into())
    }

    /// Parses `sha256:` and 64 hexadecimal digits. Other algorithms are not read.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let hex = text
            .strip_prefix("sha256:")
            .ok_or("its algorithm is not sha256")?;
        Self::from_hex(hex).ok_or("it is not 64 lower-case hexadecimal digits")
    }

    pub(crate) fn from_hex(hex: &str) -> Option<Self> {
        let bytes = hex.as_bytes();
        if bytes.len() != 64 || !bytes.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return None;
        }
        let mut out = [0; 32];
        for (i, byte) in out.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).ok()?;
        }
        Some(Digest(out))
    }

    /// The 64 hexadecimal digits.
    pub fn hex(&self) -> String {
        self.0.iter().map(|b| format!("{b:02x}")).collect()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Passes bytes through, hashing and counting them.
pub(crate) struct Hashing<T> {
    inner: T,
    hash: Sha256,
    count: Rc<Cell<u64>>,
}

impl<T> Hashing<T> {
    pub fn new(inner: T) -> Self {
        Hashing {
            inner,
            hash: Sha256::new(),
            count: Rc::new(Cell::new(0)),
        }
    }

    /// Shared view of the number of bytes passed.
    pub fn count(&self) -> Rc<Cell<u64>> {
        self.count.clone()
    }

    /// The inner object, the digest and the number of bytes.
    pub fn finish(self) -> (T, Digest, u64) {
        (self.inner, Digest(self.hash.finalize().into()), self.count.get())
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hash.update(&buffer[..n]);
        self.count.set(self.count.get() + n as u64);
        Ok(n)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(buffer)?;
        self.hash.update(&buffer[..n]);
        self.count.set(self.count.get() + n as u64);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Bounds what a decompressor may produce, in all and in proportion to what it was fed.
pub(crate) struct Bounded<R> {
    inner: R,
    subject: String,
    produced: u64,
    fed: Rc<Cell<u64>>,
    max_bytes: u64,
    total_limit: u64,
    ratio: u64,
    ratio_floor: u64,
}

impl<R> Bounded<R> {
    /// At most `max_bytes` more; `fed` counts the compressed bytes.
    pub fn new(inner: R, subject: String, fed: Rc<Cell<u64>>, max_bytes: u64, limits: &Limits) -> Self {
        let (ratio, ratio_floor, total_limit) = (limits.ratio, limits.ratio_floor_bytes, limits.bytes);
        Bounded {
            inner,
            subject,
            produced: 0,
            fed,
            max_bytes,
            total_limit,
            ratio,
            ratio_floor,
        }
    }

    pub fn produced(&self) -> u64 {
        self.produced
    }

    pub fn into_inner(self) -> R {
        self.inner
    }

    fn check(&self) -> Result<(), Error> {
        if self.produced > self.max_bytes {
            return Err(limit(
                &self.subject,
                self.total_limit,
                "unpacked bytes in all",
                "Limits::bytes",
            ));
        }
        if self.produced > self.ratio_floor && self.produced / self.ratio > self.fed.get() {
            let unit = "unpacked bytes per packed byte, as a decompression bomb would";
            return Err(limit(&self.subject, self.ratio, unit, "Limits::ratio"));
        }
        Ok(())
    }
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.produced = self.produced.saturating_add(n as u64);
        self.check().map_err(io::Error::other)?;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_parse_and_show() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of(b"").to_string(), empty);
        assert_eq!(Digest::parse(empty).unwrap(), Digest::of(b""));
        for bad in [
            "sha512:00",
            "sha256:",
            "sha256:E3B0",
            "sha256:../../etc/passwd",
            "e3b0",
        ] {
            assert!(Digest::parse(bad).is_err(), "{bad}");
        }
    }
}
