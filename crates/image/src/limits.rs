//! Bounds on what an image may demand, and the account of what it has demanded so far.

use crate::error::{Error, Result};

/// Limits of one import. The defaults let every ordinary image pass.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes of all layers together, uncompressed.
    pub bytes: u64,
    /// Entries of all layers together.
    pub entries: u64,
    /// Logical size of one file in bytes; more than `bytes`, since holes cost nothing.
    pub file_bytes: u64,
    /// Data segments of one sparse file.
    pub sparse_segments: u64,
    /// Bytes of one path.
    pub path_bytes: usize,
    /// Components of one path. Also bounds the descriptors that removing a tree needs.
    pub depth: usize,
    /// Bytes of one JSON document, and of one entry's extended header.
    pub metadata_bytes: u64,
    /// Number of layers (overlayfs itself allows 500).
    pub layers: usize,
    /// Uncompressed bytes per compressed byte of one layer.
    pub ratio: u64,
    /// Uncompressed bytes of a layer up to which `ratio` is not looked at.
    pub ratio_floor_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            bytes: 32 << 30,
            entries: 2_000_000,
            file_bytes: 16 << 40,
            sparse_segments: 1 << 20,
            path_bytes: 4095,
            depth: 256,
            metadata_bytes: 4 << 20,
            layers: 256,
            ratio: 250,
            ratio_floor_bytes: 256 << 20,
        }
    }
}

/// What one import has used of its [`Limits`].
#[derive(Debug)]
pub(crate) struct Budget {
    pub limits: Limits,
    bytes: u64,
    entries: u64,
}

impl Budget {
    pub fn new(limits: Limits) -> Self {
        Budget {
            limits,
            bytes: 0,
            entries: 0,
        }
    }

    /// Accounts uncompressed bytes, before they are used.
    pub fn take_bytes(&mut self, n: u64) -> Result<()> {
        self.bytes = self.bytes.saturating_add(n);
        if self.bytes > self.limits.bytes {
            return Err(limit(
                "the unpacked image",
                self.limits.bytes,
                "bytes",
                "Limits::bytes",
            ));
        }
        Ok(())
    }

    /// Accounts one entry.
    pub fn take_entry(&mut self) -> Result<()> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(limit(
                "the image",
                self.limits.entries,
                "entries",
                "Limits::entries",
            ));
        }
        Ok(())
    }

    /// Uncompressed bytes that may still come.
    pub fn bytes_left(&self) -> u64 {
        self.limits.bytes.saturating_sub(self.bytes)
    }
}

pub(crate) fn limit(
    subject: impl Into<String>,
    limit: u64,
    unit: &'static str,
    option: &'static str,
) -> Error {
    Error::Limit {
        subject: subject.into(),
        limit,
        unit,
        option,
    }
}
