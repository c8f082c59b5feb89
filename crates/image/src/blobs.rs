//! The files that make up an image, in a directory or in a tar archive, by name.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};

use crate::compress::{Compression, Unpacked, detect};
use crate::digest::{Bounded, Hashing};
use crate::entry::components;
use crate::error::{Error, Result, shown};
use crate::limits::{Budget, Limits, limit};
use crate::tar::read::TarReader;

/// Where the files of an image are.
pub(crate) enum Blobs {
    Dir {
        path: PathBuf,
        root: OwnedFd,
    },
    Tar {
        path: PathBuf,
        file: Arc<File>,
        members: HashMap<Vec<u8>, Member>,
    },
}

/// A member of the outer archive.
pub(crate) enum Member {
    File {
        offset: u64,
        len: u64,
    },
    /// `docker save` of older versions stores a layer shared by two images once, and a symlink to it.
    Symlink(Vec<u8>),
}

const LINKS_MAX: usize = 8;

impl Blobs {
    /// Opens a layout directory or an archive. A packed archive is unpacked into `scratch` first, since
    /// its members have to be read in another order than they come.
    pub fn open(path: &Path, scratch: &Path, budget: &mut Budget) -> Result<Self> {
        let meta = std::fs::metadata(path).map_err(Error::io("read", path))?;
        if meta.is_dir() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let root = rustix::fs::open(path, flags, Mode::empty())
                .map_err(|e| Error::io("open", path)(e.into()))?;
            return Ok(Blobs::Dir {
                path: path.to_owned(),
                root,
            });
        }
        if !meta.is_file() {
            return Err(Error::NotAnImage {
                path: path.to_owned(),
                why: "it is neither a file nor a directory".into(),
                remedy: "give an image tar or an OCI layout directory",
            });
        }
        let file = File::open(path).map_err(Error::io("open", path))?;
        let mut start = [0; 512];
        let n = read_start(&file, &mut start).map_err(Error::io("read", path))?;
        let name = shown(path.as_os_str().as_encoded_bytes());
        let file = match detect(&start[..n], &name)? {
            Compression::None if n < 512 || &start[257..262] != b"ustar" => {
                return Err(Error::NotAnImage {
                    path: path.to_owned(),
                    why: "it is no tar archive".into(),
                    remedy: "give a tar made by `docker save`, or an OCI layout as a tar or directory",
                });
            }
            Compression::None => file,
            _ => unpack_archive(file, &name, scratch, budget)?,
        };
        let members = index(&file, &name, &budget.limits)?;
        Ok(Blobs::Tar {
            path: path.to_owned(),
            file: Arc::new(file),
            members,
        })
    }

    /// The path the image was opened from.
    pub fn path(&self) -> &Path {
        match self {
            Blobs::Dir { path, .. } | Blobs::Tar { path, .. } => path,
        }
    }

    /// Opens a file and tells its length; `None` if there is none of that name.
    pub fn file(&self, name: &str) -> Result<Option<(Box<dyn Read>, u64)>> {
        if components(name.as_bytes()).is_none_or(|c| c.is_empty()) {
            return Err(Error::document(
                self.path().display().to_string(),
                format!("{name:?} is no file name"),
            ));
        }
        match self {
            Blobs::Dir { path, root } => {
                let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
                let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
                let fd = match rustix::fs::openat2(root, name, flags, Mode::empty(), resolve) {
                    Ok(fd) => fd,
                    Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(None),
                    Err(rustix::io::Errno::LOOP) => {
                        return Err(Error::NotAnImage {
                            path: path.join(name),
                            why: "it is reached through a symbolic link".into(),
                            remedy: "copy the layout with its links resolved (cp -L)",
                        });
                    }
                    Err(e) => return Err(Error::io("open", path.join(name))(e.into())),
                };
                let stat =
                    rustix::fs::fstat(&fd).map_err(|e| Error::io("read", path.join(name))(e.into()))?;
                if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                    return Err(Error::NotAnImage {
                        path: path.join(name),
                        why: "it is no regular file".into(),
                        remedy: "save the image again",
                    });
                }
                Ok(Some((Box::new(File::from(fd)), stat.st_size as u64)))
            }
            Blobs::Tar { file, members, .. } => {
                let mut wanted = name.as_bytes().to_vec();
                for _ in 0..LINKS_MAX {
                    match members.get(&wanted) {
                        None => return Ok(None),
                        Some(Member::File { offset, len }) => {
                            let slice = Slice {
                                file: file.clone(),
                                at: *offset,
                                end: offset + len,
                            };
                            return Ok(Some((Box::new(slice), *len)));
                        }
                        Some(Member::Symlink(to)) => wanted = join(&wanted, to),
                    }
                }
                Err(Error::document(
                    self.path().display().to_string(),
                    format!("{name:?} is a loop of links"),
                ))
            }
        }
    }

    /// Reads a JSON document whole.
    pub fn document(&self, name: &str, max: u64) -> Result<Option<Vec<u8>>> {
        let Some((reader, len)) = self.file(name)? else {
            return Ok(None);
        };
        if len > max {
            return Err(limit(
                format!("the document {name:?}"),
                max,
                "bytes",
                "Limits::metadata_bytes",
            ));
        }
        let mut bytes = vec![];
        reader
            .take(max)
            .read_to_end(&mut bytes)
            .map_err(Error::io("read", self.path().join(name)))?;
        Ok(Some(bytes))
    }
}

/// A stretch of a file; several may be read at once.
struct Slice {
    file: Arc<File>,
    at: u64,
    end: u64,
}

impl Read for Slice {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = buffer
            .len()
            .min(usize::try_from(self.end - self.at).unwrap_or(usize::MAX));
        let n = self.file.read_at(&mut buffer[..want], self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

fn read_start(file: &File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut n = 0;
    while n < buffer.len() {
        match file.read_at(&mut buffer[n..], n as u64)? {
            0 => break,
            more => n += more,
        }
    }
    Ok(n)
}

fn unpack_archive(file: File, name: &str, scratch: &Path, budget: &mut Budget) -> Result<File> {
    let raw = Hashing::new(file);
    let fed = raw.count();
    let unpacked = Unpacked::new(raw, name)?;
    let mut bounded = Bounded::new(
        unpacked,
        name.to_owned(),
        fed,
        budget.bytes_left(),
        &budget.limits,
    );
    let path = scratch.join("archive.tar");
    let mut out = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .map_err(Error::io("create", &path))?;
    copy(&mut bounded, &mut out, name, &path)?;
    out.rewind().map_err(Error::io("read", &path))?;
    Ok(out)
}

/// Copies, keeping apart errors of the source (the image's fault) from those of the target (the host's).
pub(crate) fn copy(
    from: &mut impl Read,
    to: &mut impl io::Write,
    subject: &str,
    target: &Path,
) -> Result<u64> {
    let mut buffer = vec![0; 64 << 10];
    let mut total = 0;
    loop {
        let n = match from.read(&mut buffer) {
            Ok(0) => return Ok(total),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(crate::tar::read::from_io(subject, e)),
        };
        to.write_all(&buffer[..n]).map_err(Error::io("write", target))?;
        total += n as u64;
    }
}

/// Finds the members of the outer archive.
fn index(file: &File, name: &str, limits: &Limits) -> Result<HashMap<Vec<u8>, Member>> {
    let mut position = Positioned {
        inner: BufReader::with_capacity(256 << 10, file),
        at: 0,
    };
    let mut members = HashMap::new();
    let mut tar = TarReader::new(&mut position, name, limits);
    while let Some(header) = tar.next_header()? {
        if members.len() as u64 >= limits.entries {
            return Err(limit(name, limits.entries, "entries", "Limits::entries"));
        }
        let path = header.path.strip_prefix(b"./").unwrap_or(&header.path);
        let path = path.strip_suffix(b"/").unwrap_or(path).to_vec();
        let offset = tar.get_ref().at;
        match header.kind {
            b'0' | 0 | b'7' if header.sparse.is_none() => {
                members.insert(
                    path,
                    Member::File {
                        offset,
                        len: header.stored,
                    },
                );
            }
            b'1' => {
                let target = header.link.strip_prefix(b"./").unwrap_or(&header.link).to_vec();
                members.insert(path, Member::Symlink([b"/", &target[..]].concat()));
            }
            b'2' => {
                members.insert(path, Member::Symlink(header.link));
            }
            _ => {}
        }
    }
    Ok(members)
}

struct Positioned<R> {
    inner: R,
    at: u64,
}

impl<R: Read> Read for Positioned<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.at += n as u64;
        Ok(n)
    }
}

/// Follows a link of the archive by text; going above the top stays at the top.
fn join(from: &[u8], link: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = from.split(|&b| b == b'/').collect();
    parts.pop();
    if link.starts_with(b"/") {
        parts.clear();
    }
    for part in link.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop();
            }
            name => parts.push(name),
        }
    }
    parts.join(&b'/')
}

#[cfg(test)]
mod tests {
    use super::join;

    #[test]
    fn links_are_followed_by_text() {
        assert_eq!(join(b"abc/layer.tar", b"../def/layer.tar"), b"def/layer.tar");
        assert_eq!(join(b"abc/layer.tar", b"/x/./y"), b"x/y");
        assert_eq!(join(b"layer.tar", b"../../../etc/passwd"), b"etc/passwd");
    }
}
