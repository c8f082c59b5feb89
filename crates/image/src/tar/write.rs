//! A tar writer whose output depends on the entries alone: ustar headers, pax records where those do not
//! suffice, no names of users, no times but the entries' own.

use std::io::{self, Read, Write};

use super::{BLOCK, KIND_RECORD, pax};
use crate::entry::{Content, Entry, Kind, components};
use crate::error::{Error, Result};
use crate::root::OVERLAY_PREFIX;

/// Largest number an eleven-digit octal field holds.
const OCTAL_MAX: u64 = 0o777_7777_7777;
/// Largest number a seven-digit octal field holds.
const ID_MAX: u64 = 0o777_7777;

/// Writes entries; the caller sees to their order (a hard link after its target).
pub(crate) struct TarWriter<W> {
    inner: W,
}

/// One header to be: what does not fit becomes pax records.
#[derive(Default)]
struct Head<'a> {
    path: &'a [u8],
    link: &'a [u8],
    kind: u8,
    mode: u32,
    uid: u32,
    gid: u32,
    mtime_ns: i128,
    size: u64,
    device: (u32, u32),
}

impl<W: Write> TarWriter<W> {
    pub fn new(inner: W) -> Self {
        TarWriter { inner }
    }

    /// Writes one entry. `layered` keeps whiteouts and opaque marks, which a plain root does not have.
    pub fn entry(&mut self, entry: Entry, layered: bool) -> Result<()> {
        check(&entry)?;
        let Entry {
            path,
            kind,
            mode,
            uid,
            gid,
            mtime_ns,
            xattrs,
        } = entry;
        let head = Head {
            path: &path,
            mode: mode & 0o7777,
            uid,
            gid,
            mtime_ns,
            ..Head::default()
        };
        let dir_path = if path.is_empty() {
            b"./".to_vec()
        } else {
            [&path[..], b"/"].concat()
        };
        let fail = |e: io::Error| failed(&path, &e);
        match kind {
            Kind::File(content) => self.file(head, content, &xattrs)?,
            Kind::Dir => self
                .head(
                    &Head {
                        path: &dir_path,
                        kind: b'5',
                        ..head
                    },
                    &xattrs,
                    vec![],
                )
                .map_err(fail)?,
            Kind::OpaqueDir => {
                self.head(
                    &Head {
                        path: &dir_path,
                        kind: b'5',
                        ..head
                    },
                    &xattrs,
                    vec![],
                )
                .map_err(fail)?;
                if layered {
                    let mark = [&dir_path[..], b".wh..wh..opq"].concat();
                    let mark = mark.strip_prefix(b"./").unwrap_or(&mark);
                    self.head(
                        &Head {
                            path: mark,
                            kind: b'0',
                            ..Head::default()
                        },
                        &[],
                        vec![],
                    )
                    .map_err(fail)?;
                }
            }
            Kind::Symlink(target) => {
                let head = Head {
                    kind: b'2',
                    link: &target,
                    mode: 0o777,
                    ..head
                };
                self.head(&head, &xattrs, vec![]).map_err(fail)?;
            }
            Kind::HardLink(target) => {
                self.head(
                    &Head {
                        kind: b'1',
                        link: &target,
                        ..head
                    },
                    &[],
                    vec![],
                )
                .map_err(fail)?;
            }
            Kind::Fifo => self
                .head(&Head { kind: b'6', ..head }, &xattrs, vec![])
                .map_err(fail)?,
            Kind::Socket => {
                let marks = vec![(KIND_RECORD.as_bytes().to_vec(), b"socket".to_vec())];
                self.head(&Head { kind: b'0', ..head }, &xattrs, marks)
                    .map_err(fail)?;
            }
            Kind::Device { block, major, minor } => {
                let kind = if block { b'4' } else { b'3' };
                self.head(
                    &Head {
                        kind,
                        device: (major, minor),
                        ..head
                    },
                    &xattrs,
                    vec![],
                )
                .map_err(fail)?;
            }
            Kind::Whiteout if layered => {
                let (parent, name) = crate::root::split(&path);
                let slash: &[u8] = if parent.is_empty() { b"" } else { b"/" };
                let mark = [parent, slash, b".wh.", name].concat();
                self.head(
                    &Head {
                        path: &mark,
                        kind: b'0',
                        ..Head::default()
                    },
                    &[],
                    vec![],
                )
                .map_err(fail)?;
            }
            Kind::Whiteout => {}
        }
        Ok(())
    }

    /// Writes a file from memory, for the outer archive.
    pub fn plain(&mut self, path: &str, bytes: &[u8]) -> io::Result<()> {
        let head = Head {
            path: path.as_bytes(),
            kind: b'0',
            mode: 0o644,
            size: bytes.len() as u64,
            ..Head::default()
        };
        self.head(&head, &[], vec![])?;
        self.inner.write_all(bytes)?;
        self.pad(bytes.len() as u64)
    }

    /// Writes a file of known length from a stream.
    pub fn stream(&mut self, path: &str, size: u64, mut data: impl Read) -> io::Result<()> {
        let head = Head {
            path: path.as_bytes(),
            kind: b'0',
            mode: 0o644,
            size,
            ..Head::default()
        };
        self.head(&head, &[], vec![])?;
        if io::copy(&mut (&mut data).take(size), &mut self.inner)? != size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.pad(size)
    }

    /// Writes a directory of the outer archive.
    pub fn plain_dir(&mut self, path: &str) -> io::Result<()> {
        self.head(
            &Head {
                path: path.as_bytes(),
                kind: b'5',
                mode: 0o755,
                ..Head::default()
            },
            &[],
            vec![],
        )
    }

    /// Ends the archive.
    pub fn finish(mut self) -> io::Result<W> {
        self.inner.write_all(&[0; 2 * BLOCK])?;
        self.inner.flush()?;
        Ok(self.inner)
    }

    fn file(&mut self, head: Head<'_>, mut content: Content, xattrs: &[(Vec<u8>, Vec<u8>)]) -> Result<()> {
        let fail = |e: io::Error| failed(head.path, &e);
        let stored = content.data_len();
        let mut size = stored;
        if content.is_sparse() {
            // Pax sparse format 1.0: the map comes first in the data, padded to a block. Where a file ends
            // in a hole, GNU tar adds an empty extent at its end; so does this.
            let mut extents = content.extents.clone();
            if extents.last().is_none_or(|e| e.offset + e.len < content.size) {
                extents.push(crate::entry::Extent {
                    offset: content.size,
                    len: 0,
                });
            }
            let mut map = format!("{}\n", extents.len());
            for extent in &extents {
                map.push_str(&format!("{}\n{}\n", extent.offset, extent.len));
            }
            let mut map = map.into_bytes();
            map.resize(map.len().next_multiple_of(BLOCK), 0);
            size += map.len() as u64;
            let records = vec![
                (b"GNU.sparse.major".to_vec(), b"1".to_vec()),
                (b"GNU.sparse.minor".to_vec(), b"0".to_vec()),
                (b"GNU.sparse.name".to_vec(), head.path.to_vec()),
                (
                    b"GNU.sparse.realsize".to_vec(),
                    content.size.to_string().into_bytes(),
                ),
            ];
            let (parent, name) = crate::root::split(head.path);
            let slash: &[u8] = if parent.is_empty() { b"" } else { b"/" };
            let path = [parent, slash, b"GNUSparseFile.0/", name].concat();
            self.head(
                &Head {
                    path: &path,
                    kind: b'0',
                    size,
                    ..head
                },
                xattrs,
                records,
            )
            .map_err(fail)?;
            self.inner.write_all(&map).map_err(fail)?;
        } else {
            self.head(
                &Head {
                    kind: b'0',
                    size,
                    ..head
                },
                xattrs,
                vec![],
            )
            .map_err(fail)?;
        }
        let copied = io::copy(&mut (&mut content.data).take(stored), &mut self.inner).map_err(fail)?;
        if copied != stored {
            let why = format!(
                "its data ends after {copied} of {stored} bytes: it was changed while being read; try again"
            );
            return Err(Error::Entry {
                entry: head.path.to_vec(),
                why,
            });
        }
        self.pad(size).map_err(fail)
    }

    fn head(
        &mut self,
        head: &Head<'_>,
        xattrs: &[(Vec<u8>, Vec<u8>)],
        marks: Vec<(Vec<u8>, Vec<u8>)>,
    ) -> io::Result<()> {
        let mut records = marks;
        let mut block = [0; BLOCK];
        if !put_path(&mut block, head.path) {
            records.push((b"path".to_vec(), head.path.to_vec()));
            let cut = head.path.len().min(100);
            block[..cut].copy_from_slice(&head.path[..cut]);
        }
        if head.link.len() > 100 || !head.link.is_ascii() {
            records.push((b"linkpath".to_vec(), head.link.to_vec()));
        }
        let cut = head.link.len().min(100);
        block[157..157 + cut].copy_from_slice(&head.link[..cut]);
        let mut number = |key: &str, value: u64, max: u64| {
            if value > max {
                records.push((key.as_bytes().to_vec(), value.to_string().into_bytes()));
            }
            value.min(max)
        };
        let uid = number("uid", head.uid.into(), ID_MAX);
        let gid = number("gid", head.gid.into(), ID_MAX);
        let size = number("size", head.size, OCTAL_MAX);
        let seconds = head
            .mtime_ns
            .div_euclid(1_000_000_000)
            .clamp(0, i128::from(OCTAL_MAX));
        if head.mtime_ns != seconds * 1_000_000_000 {
            records.push((b"mtime".to_vec(), pax::time_text(head.mtime_ns).into_bytes()));
        }
        for (name, value) in xattrs {
            records.push(([b"SCHILY.xattr.", &name[..]].concat(), value.clone()));
        }
        if !records.is_empty() {
            records.sort();
            self.extended(&records)?;
        }
        put_octal(&mut block[100..108], u64::from(head.mode));
        put_octal(&mut block[108..116], uid);
        put_octal(&mut block[116..124], gid);
        put_octal(&mut block[124..136], size);
        put_octal(&mut block[136..148], seconds as u64);
        block[156] = head.kind;
        put_octal(&mut block[329..337], u64::from(head.device.0));
        put_octal(&mut block[337..345], u64::from(head.device.1));
        self.seal(block)
    }

    fn extended(&mut self, records: &[(Vec<u8>, Vec<u8>)]) -> io::Result<()> {
        let mut body = vec![];
        for (key, value) in records {
            pax::push(&mut body, key, value);
        }
        let mut block = [0; BLOCK];
        block[..10].copy_from_slice(b"PaxHeaders");
        put_octal(&mut block[100..108], 0o644);
        put_octal(&mut block[108..116], 0);
        put_octal(&mut block[116..124], 0);
        put_octal(&mut block[124..136], body.len() as u64);
        put_octal(&mut block[136..148], 0);
        block[156] = b'x';
        self.seal(block)?;
        self.inner.write_all(&body)?;
        self.pad(body.len() as u64)
    }

    fn seal(&mut self, mut block: [u8; BLOCK]) -> io::Result<()> {
        block[257..265].copy_from_slice(b"ustar\x0000");
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        self.inner.write_all(&block)
    }

    fn pad(&mut self, len: u64) -> io::Result<()> {
        let padding = len.next_multiple_of(BLOCK as u64) - len;
        self.inner.write_all(&[0; BLOCK][..padding as usize])
    }
}

/// Refuses what the format has no words for.
fn check(entry: &Entry) -> Result<()> {
    let refuse = |why: String| {
        Err(Error::Entry {
            entry: entry.path.clone(),
            why,
        })
    };
    let Some(parts) = components(&entry.path) else {
        return refuse("its path is not relative, or has an empty, upward or over-long component".into());
    };
    if parts.is_empty() && !matches!(entry.kind, Kind::Dir | Kind::OpaqueDir) {
        return refuse("the root must be a directory".into());
    }
    if parts.iter().any(|part| part.starts_with(b".wh.")) {
        return refuse("names beginning with .wh. mean deletions in image layers; rename it".into());
    }
    match &entry.kind {
        Kind::HardLink(target)
            if components(target).is_none_or(|c| c.is_empty()) || *target == entry.path =>
        {
            return refuse("its hard link target is not another path of the layer".into());
        }
        Kind::Symlink(target) if target.is_empty() || target.contains(&0) => {
            return refuse("its link text is empty or holds a NUL byte".into());
        }
        Kind::File(content) if !content.extents_are_valid() => {
            return refuse("its data extents overlap or pass its end".into());
        }
        _ => {}
    }
    for (name, _) in &entry.xattrs {
        if name.is_empty() || name.contains(&b'=') || name.contains(&0) {
            return refuse(format!(
                "the attribute name {} cannot be written",
                crate::error::shown(name)
            ));
        }
        if name.starts_with(OVERLAY_PREFIX) {
            return refuse(format!(
                "{} is overlayfs's own; resolve it first",
                crate::error::shown(name)
            ));
        }
    }
    Ok(())
}

fn failed(path: &[u8], e: &io::Error) -> Error {
    Error::Entry {
        entry: path.to_vec(),
        why: e.to_string(),
    }
}

/// Puts a path into the name and prefix fields; false if it does not fit or is not plain ASCII.
fn put_path(block: &mut [u8; BLOCK], path: &[u8]) -> bool {
    if !path.is_ascii() {
        return false;
    }
    if path.len() <= 100 {
        block[..path.len()].copy_from_slice(path);
        return true;
    }
    let fits = |&at: &usize| at <= 155 && (1..=100).contains(&(path.len() - at - 1));
    let slashes = path
        .iter()
        .enumerate()
        .filter(|&(_, &b)| b == b'/')
        .map(|(i, _)| i);
    match slashes.rev().find(fits) {
        Some(at) if at > 0 => {
            block[345..345 + at].copy_from_slice(&path[..at]);
            block[..path.len() - at - 1].copy_from_slice(&path[at + 1..]);
            true
        }
        _ => false,
    }
}

/// Octal digits, zero-padded, ended by a NUL. The caller has bounded the value.
fn put_octal(field: &mut [u8], value: u64) {
    let width = field.len() - 1;
    field[..width].copy_from_slice(format!("{value:0width$o}").as_bytes());
    field[width] = 0;
}
