//! A tar reader for archives that cannot be trusted: every length is checked against a limit before it is
//! used, and nothing is ever guessed from a damaged header.

use std::io::{self, Read};

use super::{BLOCK, KIND_RECORD, pax};
use crate::entry::{Extent, extents_are_valid};
use crate::error::{Error, Result, shown};
use crate::limits::{Limits, limit};

/// One entry's description. Paths are as the archive has them.
#[derive(Debug, Default, Clone)]
pub(crate) struct Header {
    pub path: Vec<u8>,
    pub link: Vec<u8>,
    pub kind: u8,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime_ns: i128,
    /// Bytes of data stored in the archive, without a sparse map.
    pub stored: u64,
    /// Logical size and data extents, for a sparse file.
    pub sparse: Option<(u64, Vec<Extent>)>,
    pub major: u32,
    pub minor: u32,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// ACLs in text form: (is the default ACL, text).
    pub acls: Vec<(bool, Vec<u8>)>,
    /// Value of [`KIND_RECORD`].
    pub marked_kind: Option<Vec<u8>>,
}

/// Reads entries one after another; the data of the current one through [`Read`].
pub(crate) struct TarReader<'l, R> {
    inner: R,
    subject: String,
    limits: &'l Limits,
    left: u64,
    padding: u64,
    ended: bool,
    records: u64,
}

/// What extended headers say of the next entry.
#[derive(Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime_ns: Option<i128>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    acls: Vec<(bool, Vec<u8>)>,
    marked_kind: Option<Vec<u8>>,
    sparse_version: (Option<u64>, Option<u64>),
    sparse_name: Option<Vec<u8>>,
    sparse_size: Option<u64>,
    sparse_map: Vec<Extent>,
    sparse_offset: Option<u64>,
    sparse_seen: bool,
}

impl<'l, R: Read> TarReader<'l, R> {
    pub fn new(inner: R, subject: impl Into<String>, limits: &'l Limits) -> Self {
        TarReader {
            inner,
            subject: subject.into(),
            limits,
            left: 0,
            padding: 0,
            ended: false,
            records: 0,
        }
    }

    /// The underlying reader, at the end of what was read.
    pub fn into_inner(self) -> R {
        self.inner
    }

    /// The underlying reader; at the start of the data just after [`Self::next_header`].
    pub fn get_ref(&self) -> &R {
        &self.inner
    }

    /// Skips what is left of the current entry and reads the next one's header.
    pub fn next_header(&mut self) -> Result<Option<Header>> {
        self.skip_data()?;
        let mut extended = Extended::default();
        loop {
            let Some(block) = self.header_block()? else {
                return Ok(None);
            };
            let kind = block[156];
            match kind {
                b'x' | b'X' => {
                    let body = self.metadata(&block)?;
                    self.extended(&body, &mut extended)?;
                }
                // Global records would apply to everything that follows; in images they only hold comments.
                b'g' => {
                    let body = self.metadata(&block)?;
                    for (key, _) in pax::records(&body).map_err(|why| self.damaged(why))? {
                        if key != b"comment" {
                            return Err(Error::Unsupported {
                                what: format!("{}: the global header {}", self.subject, shown(key)),
                                remedy: "write the archive with per-file headers".into(),
                            });
                        }
                    }
                }
                b'L' => extended.path = Some(trimmed(self.metadata(&block)?)),
                b'K' => extended.link = Some(trimmed(self.metadata(&block)?)),
                _ => return self.entry(&block, extended).map(Some),
            }
        }
    }

    fn damaged(&self, why: impl Into<String>) -> Error {
        Error::damaged(&self.subject, why)
    }

    fn read_exact(&mut self, buffer: &mut [u8]) -> Result<()> {
        self.inner
            .read_exact(buffer)
            .map_err(|e| from_io(&self.subject, e))
    }

    /// The next header block with a right checksum, or `None` at the end of the archive.
    fn header_block(&mut self) -> Result<Option<[u8; BLOCK]>> {
        if self.ended {
            return Ok(None);
        }
        // Extended headers without end would otherwise not be counted by anybody.
        self.records += 1;
        if self.records > self.limits.entries.saturating_mul(4) {
            return Err(limit(
                &self.subject,
                self.limits.entries,
                "entries",
                "Limits::entries",
            ));
        }
        let mut block = [0; BLOCK];
        self.read_exact(&mut block)?;
        if block.iter().all(|&b| b == 0) {
            self.ended = true;
            return Ok(None);
        }
        let stored =
            octal(&block[148..156]).ok_or_else(|| self.damaged("a header has a malformed checksum"))?;
        let sum = |signed: bool| -> u64 {
            let byte = |b: u8| if signed { i64::from(b as i8) } else { i64::from(b) };
            let total: i64 = block
                .iter()
                .enumerate()
                .map(|(i, &b)| byte(if (148..156).contains(&i) { b' ' } else { b }))
                .sum();
            total.unsigned_abs()
        };
        if stored != sum(false) && stored != sum(true) {
            return Err(self.damaged("a header's checksum is wrong"));
        }
        Ok(Some(block))
    }

    /// The data of an extended header.
    fn metadata(&mut self, block: &[u8; BLOCK]) -> Result<Vec<u8>> {
        let size = field(&block[124..136]).ok_or_else(|| self.damaged("a header has a malformed size"))?;
        let size = size.max(0) as u64;
        if size > self.limits.metadata_bytes {
            let subject = format!("{}: an extended header", self.subject);
            return Err(limit(
                subject,
                self.limits.metadata_bytes,
                "bytes",
                "Limits::metadata_bytes",
            ));
        }
        let mut body = vec![0; size.next_multiple_of(BLOCK as u64) as usize];
        self.read_exact(&mut body)?;
        body.truncate(size as usize);
        Ok(body)
    }

    fn extended(&self, body: &[u8], to: &mut Extended) -> Result<()> {
        let bad = |key: &[u8]| self.damaged(format!("the extended header {} is malformed", shown(key)));
        for (key, value) in pax::records(body).map_err(|why| self.damaged(why))? {
            let number = || pax::number(value).ok_or_else(|| bad(key));
            match key {
                b"path" => to.path = Some(value.to_vec()),
                b"linkpath" => to.link = Some(value.to_vec()),
                b"size" => to.size = Some(number()?),
                b"uid" => to.uid = Some(number()?),
                b"gid" => to.gid = Some(number()?),
                b"mtime" => to.mtime_ns = Some(pax::time_ns(value).ok_or_else(|| bad(key))?),
                b"SCHILY.acl.access" => to.acls.push((false, value.to_vec())),
                b"SCHILY.acl.default" => to.acls.push((true, value.to_vec())),
                b"GNU.sparse.major" => to.sparse_version.0 = Some(number()?),
                b"GNU.sparse.minor" => to.sparse_version.1 = Some(number()?),
                b"GNU.sparse.name" => to.sparse_name = Some(value.to_vec()),
                b"GNU.sparse.size" | b"GNU.sparse.realsize" => {
                    to.sparse_size = Some(number()?);
                    to.sparse_seen = true;
                }
                b"GNU.sparse.offset" => to.sparse_offset = Some(number()?),
                b"GNU.sparse.numbytes" => {
                    let offset = to.sparse_offset.take().ok_or_else(|| bad(key))?;
                    self.push_extent(&mut to.sparse_map, offset, number()?)?;
                }
                b"GNU.sparse.map" if !value.is_empty() => {
                    let mut numbers = value.split(|&b| b == b',').map(pax::number);
                    while let Some(offset) = numbers.next() {
                        let (offset, len) = offset.zip(numbers.next().flatten()).ok_or_else(|| bad(key))?;
                        self.push_extent(&mut to.sparse_map, offset, len)?;
                    }
                }
                key if key.starts_with(b"SCHILY.xattr.") => {
                    to.xattrs
                        .push((key[b"SCHILY.xattr.".len()..].to_vec(), value.to_vec()));
                }
                key if key == KIND_RECORD.as_bytes() => to.marked_kind = Some(value.to_vec()),
                _ => {}
            }
        }
        Ok(())
    }

    fn push_extent(&self, map: &mut Vec<Extent>, offset: u64, len: u64) -> Result<()> {
        if map.len() as u64 >= self.limits.sparse_segments {
            let subject = format!("{}: a sparse file", self.subject);
            return Err(limit(
                subject,
                self.limits.sparse_segments,
                "segments",
                "Limits::sparse_segments",
            ));
        }
        map.push(Extent { offset, len });
        Ok(())
    }

    fn entry(&mut self, block: &[u8; BLOCK], extended: Extended) -> Result<Header> {
        let number = |range: std::ops::Range<usize>, what: &str| {
            field(&block[range]).ok_or_else(|| self.damaged(format!("a header has a malformed {what}")))
        };
        let id = |value: Option<u64>, range, what: &str| -> Result<u32> {
            let value = value.map_or_else(|| number(range, what), |v| Ok(i128::from(v)))?;
            // The highest value means "unchanged" to chown(2).
            u32::try_from(value)
                .ok()
                .filter(|&v| v != u32::MAX)
                .ok_or_else(|| self.damaged(format!("{what} {value} does not exist")))
        };
        let size = match extended.size {
            Some(size) => size,
            None => {
                u64::try_from(number(124..136, "size")?).map_err(|_| self.damaged("a size is negative"))?
            }
        };
        let mut header = Header {
            path: extended
                .sparse_name
                .or(extended.path)
                .unwrap_or_else(|| name(block)),
            link: extended.link.unwrap_or_else(|| trimmed(block[157..257].to_vec())),
            kind: block[156],
            mode: (number(100..108, "mode")? & 0o7777) as u32,
            uid: id(extended.uid, 108..116, "user id")?,
            gid: id(extended.gid, 116..124, "group id")?,
            mtime_ns: match extended.mtime_ns {
                Some(ns) => ns,
                None => number(136..148, "time")?.saturating_mul(1_000_000_000),
            },
            xattrs: extended.xattrs,
            acls: extended.acls,
            marked_kind: extended.marked_kind,
            ..Header::default()
        };
        if matches!(header.kind, b'3' | b'4') {
            header.major = u32::try_from(number(329..337, "device number")?).unwrap_or(0);
            header.minor = u32::try_from(number(337..345, "device number")?).unwrap_or(0);
        }
        // Links and the like hold no data, whatever their size field says (GNU tar writes it for hard links).
        let holds_data = !matches!(header.kind, b'1'..=b'6');
        self.left = if holds_data { size } else { 0 };
        // A size near the end of the range has no next multiple; its data ends too early anyway.
        self.padding = self
            .left
            .checked_next_multiple_of(BLOCK as u64)
            .map_or(0, |end| end - self.left);
        if header.kind == b'S' {
            header.sparse = Some(self.old_sparse_map(block)?);
            header.kind = b'0';
        } else if extended.sparse_version == (Some(1), Some(0)) {
            let map = self.sparse_map_in_data()?;
            header.sparse = Some((
                extended
                    .sparse_size
                    .ok_or_else(|| self.damaged("a sparse file has no size"))?,
                map,
            ));
        } else if extended.sparse_seen {
            header.sparse = Some((extended.sparse_size.unwrap_or(size), extended.sparse_map));
        }
        header.stored = self.left;
        self.check_sparse(&mut header)?;
        Ok(header)
    }

    fn check_sparse(&self, header: &mut Header) -> Result<()> {
        if let Some((size, map)) = &mut header.sparse {
            map.retain(|e| e.len > 0);
            let stored = map.iter().try_fold(0u64, |sum, e| sum.checked_add(e.len));
            if !extents_are_valid(map, *size) || stored != Some(header.stored) {
                return Err(self.damaged(format!(
                    "the map of the sparse file {} is wrong",
                    shown(&header.path)
                )));
            }
        }
        let size = header.sparse.as_ref().map_or(header.stored, |(size, _)| *size);
        if size > self.limits.file_bytes {
            let subject = format!("{}: file {}", self.subject, shown(&header.path));
            return Err(limit(
                subject,
                self.limits.file_bytes,
                "bytes",
                "Limits::file_bytes",
            ));
        }
        Ok(())
    }

    /// The map of GNU tar's own sparse format: four entries in the header, the rest in blocks after it.
    fn old_sparse_map(&mut self, block: &[u8; BLOCK]) -> Result<(u64, Vec<Extent>)> {
        let malformed = || "the map of a sparse file is malformed";
        let size = field(&block[483..495])
            .and_then(|n| u64::try_from(n).ok())
            .ok_or_else(|| self.damaged(malformed()))?;
        let mut map = vec![];
        let mut area = block[386..482].to_vec();
        let mut more = block[482] != 0;
        loop {
            for pair in area.chunks_exact(24).take_while(|pair| pair[0] != 0) {
                let number = |bytes: &[u8]| field(bytes).and_then(|n| u64::try_from(n).ok());
                let (offset, len) = number(&pair[..12])
                    .zip(number(&pair[12..]))
                    .ok_or_else(|| self.damaged(malformed()))?;
                self.push_extent(&mut map, offset, len)?;
            }
            if !more {
                return Ok((size, map));
            }
            let mut next = [0; BLOCK];
            self.read_exact(&mut next)?;
            more = next[504] != 0;
            area = next[..504].to_vec();
            // A block that adds nothing could be repeated without end.
            if more && area[0] == 0 {
                return Err(self.damaged(malformed()));
            }
        }
    }

    /// The map of pax sparse format 1.0: decimal lines at the start of the data, padded to a block.
    fn sparse_map_in_data(&mut self) -> Result<Vec<Extent>> {
        let mut numbers: Vec<u64> = vec![];
        let mut digits: Vec<u8> = vec![];
        let mut wanted = 1u64;
        loop {
            if self.left < BLOCK as u64 {
                return Err(self.damaged("the map of a sparse file is longer than its data"));
            }
            let mut block = [0; BLOCK];
            self.read_exact(&mut block)?;
            self.left -= BLOCK as u64;
            for &b in &block {
                if b != b'\n' {
                    digits.push(b);
                    continue;
                }
                let n = pax::number(&digits)
                    .ok_or_else(|| self.damaged("the map of a sparse file is malformed"))?;
                digits.clear();
                numbers.push(n);
                if numbers.len() == 1 {
                    if n > self.limits.sparse_segments {
                        let subject = format!("{}: a sparse file", self.subject);
                        return Err(limit(
                            subject,
                            self.limits.sparse_segments,
                            "segments",
                            "Limits::sparse_segments",
                        ));
                    }
                    wanted = 1 + 2 * n;
                }
                if numbers.len() as u64 == wanted {
                    return Ok(numbers[1..]
                        .chunks_exact(2)
                        .map(|p| Extent {
                            offset: p[0],
                            len: p[1],
                        })
                        .collect());
                }
            }
            if digits.len() > 20 {
                return Err(self.damaged("the map of a sparse file is malformed"));
            }
        }
    }

    fn skip_data(&mut self) -> Result<()> {
        let rest = self.left.saturating_add(std::mem::take(&mut self.padding));
        self.left = 0;
        let skipped = io::copy(&mut (&mut self.inner).take(rest), &mut io::sink())
            .map_err(|e| from_io(&self.subject, e))?;
        if skipped != rest {
            return Err(from_io(&self.subject, io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(())
    }
}

impl<R: Read> Read for TarReader<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if want == 0 {
            return Ok(0);
        }
        let got = self.inner.read(&mut buffer[..want])?;
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= got as u64;
        Ok(got)
    }
}

/// Turns an error of a reader into ours. Readers of this crate pass our own errors through wrapped.
pub(crate) fn from_io(subject: &str, error: io::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(ours) => ours,
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Error::damaged(subject, "it ends too early"),
        Err(e) => Error::damaged(subject, crate::error::one_line(&e.to_string())),
    }
}

/// The path of a header block: name, and in POSIX archives a prefix.
fn name(block: &[u8; BLOCK]) -> Vec<u8> {
    let name = trimmed(block[..100].to_vec());
    if &block[257..263] != b"ustar\0" {
        return name;
    }
    // star keeps times in the last bytes of the prefix and says so at the end of the block.
    let prefix_end = if &block[508..512] == b"tar\0" { 476 } else { 500 };
    let mut path = trimmed(block[345..prefix_end].to_vec());
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(&name);
    path
}

fn trimmed(mut text: Vec<u8>) -> Vec<u8> {
    if let Some(end) = text.iter().position(|&b| b == 0) {
        text.truncate(end);
    }
    text
}

/// A number field: octal text, or base 256 when the first bit is set.
fn field(bytes: &[u8]) -> Option<i128> {
    if bytes[0] & 0x80 == 0 {
        return octal(bytes).map(i128::from);
    }
    // Two's complement; the marker bit is not part of the number.
    let negative = bytes[0] & 0x40 != 0;
    let mut value: i128 = if negative { -1 } else { 0 };
    for (i, &b) in bytes.iter().enumerate() {
        let b = if i == 0 && !negative { b & 0x7f } else { b };
        value = (value << 8) | i128::from(b);
    }
    i64::try_from(value).ok().map(i128::from)
}

/// Octal digits, padded with spaces or NULs; empty is zero.
fn octal(bytes: &[u8]) -> Option<u64> {
    let start = bytes.iter().position(|&b| b != b' ').unwrap_or(bytes.len());
    let rest = &bytes[start..];
    let end = rest
        .iter()
        .position(|&b| b == 0 || b == b' ')
        .unwrap_or(rest.len());
    if !rest[end..].iter().all(|&b| b == 0 || b == b' ') {
        return None;
    }
    let mut value = 0u64;
    for &digit in &rest[..end] {
        if !(b'0'..=b'7').contains(&digit) {
            return None;
        }
        value = value.checked_mul(8)?.checked_add(u64::from(digit - b'0'))?;
    }
    Some(value)
}
