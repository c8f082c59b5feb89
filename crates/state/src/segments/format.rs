//! The segment file, byte by byte: docs/formats.md.
//!
//! ```text
//! magic | frames of pages | frame of the contents' description | footer
//! ```
//!
//! A frame is a zstd frame with its checksum, so whatever is read has been verified. A file is written once and never
//! changed.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use deltabox_process::descriptor::ExternalId;
use deltabox_process::{Image, PageRef};
use serde::{Deserialize, Serialize};

use super::SegmentId;
use crate::id::ExecId;
use crate::steps;

/// First bytes of a file; the last one is the version.
pub(super) const MAGIC: [u8; 8] = *b"DBXSEGM\x02";
/// Last bytes of a file.
const END: [u8; 8] = *b"DBXSEGE\x02";
/// Offset and length of the description, and [`END`].
const FOOTER: usize = 24;
/// Bytes of a page.
pub(super) const PAGE: usize = 4096;
/// Pages of a frame.
pub(super) const FRAME_PAGES: usize = 64;
/// The fastest level that is worth it: pages of programs shrink to a third and more.
const LEVEL: i32 = 1;
/// A description larger than this is taken for damage: 60,000 mappings take a few megabytes.
const MOST_DESCRIPTION: usize = 1 << 30;

/// What a segment holds besides pages.
#[derive(Serialize, Deserialize)]
pub(super) struct Description {
    /// Where the frames of pages are: offset and length in the file.
    pub frames: Vec<(u64, u32)>,
    /// All segments that pages of this state are in, this one included if it has any.
    pub segments: Vec<SegmentId>,
    /// The pages of each process of the image, then those of each piece of shared memory.
    pub trees: Vec<Vec<Run>>,
    pub state: SavedState,
}

/// Pages in a row, both in the address space and in their segment.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Run {
    /// Number of the first page: address divided by the page size.
    pub first: u64,
    pub count: u64,
    /// `None`: pages of zeros.
    pub from: Option<Place>,
}

/// Where a page is: a segment, and the number of the page in it.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Place {
    pub segment: SegmentId,
    pub index: u32,
}

impl Place {
    /// As one number that is never 0.
    pub fn packed(self) -> u64 {
        (u64::from(self.segment.0) << 32) | u64::from(self.index)
    }

    pub fn unpacked(packed: u64) -> Option<Self> {
        (packed != 0).then_some(Self {
            segment: SegmentId((packed >> 32) as u32),
            index: packed as u32,
        })
    }
}

/// The process half of a checkpoint without page contents.
#[derive(Serialize, Deserialize)]
pub(crate) struct SavedState {
    pub image: Image,
    pub execs: Vec<ExecId>,
    pub externals: Vec<ExternalId>,
}

/// Writes a segment from its beginning to its end.
pub(super) struct Writer {
    file: File,
    at: u64,
    frames: Vec<(u64, u32)>,
    pending: Vec<u8>,
    pages: u32,
}

impl Writer {
    pub fn new(file: File) -> io::Result<Self> {
        steps::write_all_at(&file, &MAGIC, 0)?;
        Ok(Self {
            file,
            at: MAGIC.len() as u64,
            frames: Vec::new(),
            pending: Vec::with_capacity(FRAME_PAGES * PAGE),
            pages: 0,
        })
    }

    /// Adds a page and returns its number.
    pub fn add(&mut self, page: &PageRef) -> io::Result<u32> {
        let number = self.pages;
        self.pages += 1;
        self.pending.extend_from_slice(page.bytes());
        if self.pending.len() == FRAME_PAGES * PAGE {
            self.write_pages()?;
        }
        Ok(number)
    }

    fn write_pages(&mut self) -> io::Result<()> {
        if !self.pending.is_empty() {
            let pages = std::mem::take(&mut self.pending);
            let frame = self.frame(&pages)?;
            self.frames.push(frame);
            self.pending = pages;
            self.pending.clear();
        }
        Ok(())
    }

    fn frame(&mut self, bytes: &[u8]) -> io::Result<(u64, u32)> {
        let mut compressor = zstd::bulk::Compressor::new(LEVEL)?;
        compressor.include_checksum(true)?;
        let frame = compressor.compress(bytes)?;
        let place = self.at;
        steps::write_all_at(&self.file, &frame, place)?;
        self.at += frame.len() as u64;
        let length = u32::try_from(frame.len()).map_err(io::Error::other)?;
        Ok((place, length))
    }

    /// Writes the description, whose frames are filled in, and makes the file durable.
    pub fn finish(mut self, mut description: Description) -> io::Result<u64> {
        self.write_pages()?;
        description.frames = std::mem::take(&mut self.frames);
        let bytes = postcard::to_stdvec(&description).map_err(io::Error::other)?;
        let (offset, length) = self.frame(&bytes)?;
        let mut footer = [0; FOOTER];
        footer[..8].copy_from_slice(&offset.to_le_bytes());
        footer[8..16].copy_from_slice(&u64::from(length).to_le_bytes());
        footer[16..].copy_from_slice(&END);
        steps::write_all_at(&self.file, &footer, self.at)?;
        steps::sync(&self.file)?;
        Ok(self.at + FOOTER as u64)
    }
}

/// Why a segment cannot be read, in words that end a sentence.
pub(super) fn damaged(what: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_string())
}

/// Reads the description of a segment.
pub(super) fn describe(file: &File) -> io::Result<Description> {
    let size = file.metadata()?.len();
    let mut magic = [0; MAGIC.len()];
    file.read_exact_at(&mut magic, 0)
        .map_err(|_| damaged("it is too short"))?;
    if magic[..7] != MAGIC[..7] {
        return Err(damaged("it is no segment"));
    }
    if magic != MAGIC {
        return Err(damaged(format!(
            "it has version {}, and this program knows {}",
            magic[7], MAGIC[7]
        )));
    }
    let mut footer = [0; FOOTER];
    let place = size
        .checked_sub(FOOTER as u64)
        .ok_or_else(|| damaged("it is too short"))?;
    file.read_exact_at(&mut footer, place)?;
    if footer[16..] != END {
        return Err(damaged("its end is missing"));
    }
    let word = |at: usize| footer[at..at + 8].try_into().map_or(0, u64::from_le_bytes);
    let bytes = read_frame(file, word(0), word(8), MOST_DESCRIPTION)?;
    postcard::from_bytes(&bytes).map_err(|error| damaged(format!("its description makes no sense ({error})")))
}

/// Reads the pages of one frame.
pub(super) fn read_pages(file: &File, frame: (u64, u32)) -> io::Result<Vec<u8>> {
    read_frame(file, frame.0, u64::from(frame.1), FRAME_PAGES * PAGE)
}

fn read_frame(file: &File, offset: u64, length: u64, most: usize) -> io::Result<Vec<u8>> {
    let size = file.metadata()?.len();
    if offset.checked_add(length).is_none_or(|end| end > size) {
        return Err(damaged("a part of it lies outside"));
    }
    let mut frame = vec![0; length as usize];
    file.read_exact_at(&mut frame, offset)?;
    let stated = zstd::zstd_safe::get_frame_content_size(&frame)
        .ok()
        .flatten()
        .filter(|&stated| stated <= most as u64)
        .ok_or_else(|| damaged("the size of a part of it makes no sense"))?;
    zstd::bulk::decompress(&frame, stated as usize)
        .map_err(|error| damaged(format!("a part of it does not match its checksum ({error})")))
}
