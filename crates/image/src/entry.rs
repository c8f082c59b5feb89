//! One entry of a file layer, independent of where it comes from and where it goes.

use std::fmt;
use std::io::Read;

/// An entry of a layer. Paths are relative to the layer's root, without `.` or `..`; the root itself is
/// the empty path.
#[derive(Debug)]
pub struct Entry {
    /// Path relative to the root, components separated by `/`, no leading or trailing slash.
    pub path: Vec<u8>,
    /// What it is, with its content.
    pub kind: Kind,
    /// Permission bits including set-uid, set-gid and sticky (`0o7777`).
    pub mode: u32,
    /// Owner, as a number.
    pub uid: u32,
    /// Group, as a number.
    pub gid: u32,
    /// Modification time in nanoseconds since 1970.
    pub mtime_ns: i128,
    /// Extended attributes by full name (`user.x`, `security.capability`, `system.posix_acl_access`, ...).
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// The kinds of [`Entry`].
#[derive(Debug)]
pub enum Kind {
    /// A regular file.
    File(Content),
    /// A directory; its content is in other entries.
    Dir,
    /// A symbolic link and the text it holds.
    Symlink(Vec<u8>),
    /// Another name of the entry at this path, which is a non-directory and comes before. Owner, mode,
    /// times and attributes are those of the target.
    HardLink(Vec<u8>),
    /// A FIFO.
    Fifo,
    /// A unix socket's name (nothing listens on it).
    Socket,
    /// A device node.
    Device { block: bool, major: u32, minor: u32 },
    /// Removes what lower layers have at this path. Owner, mode, times and attributes mean nothing.
    Whiteout,
    /// A directory that hides everything lower layers have inside it.
    OpaqueDir,
}

/// A stretch of a file that holds data, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Where it starts in the file.
    pub offset: u64,
    /// How long it is.
    pub len: u64,
}

/// The content of a regular file: its data extents; everything between them is a hole.
pub struct Content {
    /// Logical size in bytes.
    pub size: u64,
    /// Ascending, not overlapping, within `size`.
    pub extents: Vec<Extent>,
    /// Yields the bytes of the extents, one after another, and nothing else.
    pub data: Box<dyn Read + Send>,
}

impl Content {
    /// A file without holes.
    pub fn dense(size: u64, data: impl Read + Send + 'static) -> Self {
        let extents = if size == 0 {
            vec![]
        } else {
            vec![Extent { offset: 0, len: size }]
        };
        Content {
            size,
            extents,
            data: Box::new(data),
        }
    }

    /// Whether there are holes.
    pub fn is_sparse(&self) -> bool {
        self.data_len() != self.size
    }

    /// Bytes of data.
    pub fn data_len(&self) -> u64 {
        self.extents.iter().map(|e| e.len).sum()
    }

    /// Whether the extents are what the documentation of `extents` demands.
    pub(crate) fn extents_are_valid(&self) -> bool {
        extents_are_valid(&self.extents, self.size)
    }
}

pub(crate) fn extents_are_valid(extents: &[Extent], size: u64) -> bool {
    let mut end = 0u64;
    extents.iter().all(|e| {
        let ascending = e.offset >= end;
        match e.offset.checked_add(e.len) {
            Some(next) if ascending && next <= size => {
                end = next;
                true
            }
            _ => false,
        }
    })
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Content")
            .field("size", &self.size)
            .field("extents", &self.extents)
            .finish()
    }
}

/// Checks a path of an [`Entry`] and splits it: no empty component, no `.` or `..`, no NUL.
/// The root is the empty list.
pub(crate) fn components(path: &[u8]) -> Option<Vec<&[u8]>> {
    if path.is_empty() {
        return Some(vec![]);
    }
    path.split(|&b| b == b'/')
        .map(|c| (!c.is_empty() && c != b"." && c != b".." && c.len() <= 255 && !c.contains(&0)).then_some(c))
        .collect()
}
