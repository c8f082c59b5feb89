//! Where the content of files goes that have no name a frozen layer could hold it under: deleted but open files
//! and memfds.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use deltabox_sys::view::View;
use rustix::fs::{AtFlags, Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use super::tables::ContentId;

/// A store of contents, provided by the caller. An id is never reused for another content.
pub trait Contents {
    /// Keeps the content of `file` (open for reading), leaving no trace at it. `previous` is what the same file held at an earlier
    /// capture: when nothing changed, it may be returned instead of a new id.
    ///
    /// # Errors
    /// When reading or keeping fails; nothing is kept then.
    fn keep(&mut self, file: BorrowedFd<'_>, previous: Option<ContentId>) -> io::Result<ContentId>;

    /// Does `file` (open for reading) hold exactly this content?
    ///
    /// # Errors
    /// When reading fails.
    fn holds(&self, file: BorrowedFd<'_>, id: ContentId) -> io::Result<bool>;

    /// Makes `file` (open for writing) hold exactly this content.
    ///
    /// # Errors
    /// When the content is not there or writing fails.
    fn put_back(&self, file: BorrowedFd<'_>, id: ContentId) -> io::Result<()>;
}

/// Contents as files of one directory, named by their id; holes stay holes.
#[derive(Debug)]
pub struct ContentDirectory {
    dir: OwnedFd,
}

const BLOCK: usize = 256 * 1024;

impl ContentDirectory {
    /// Uses an existing directory.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: &std::path::Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self {
            dir: rustix::fs::open(path, flags, Mode::empty())?,
        })
    }

    /// The file of the directory that holds a content.
    #[must_use]
    pub fn file_name(id: ContentId) -> String {
        format!("{:032x}", id.0)
    }

    /// Forgets a content; one that is not there is no error.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(&self, id: ContentId) -> io::Result<()> {
        match rustix::fs::unlinkat(&self.dir, Self::file_name(id), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Has `other`, on the same filesystem, keep a content as well; one that it has already is no error.
    ///
    /// # Errors
    /// When the content is not there or cannot be linked.
    pub fn share(&self, id: ContentId, other: &ContentDirectory) -> io::Result<()> {
        let name = Self::file_name(id);
        match rustix::fs::linkat(&self.dir, &name, &other.dir, &name, AtFlags::empty()) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    fn stored(&self, id: ContentId) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        Ok(rustix::fs::openat(&self.dir, Self::file_name(id), flags, Mode::empty())?.into())
    }
}

impl Contents for ContentDirectory {
    fn keep(&mut self, file: BorrowedFd<'_>, previous: Option<ContentId>) -> io::Result<ContentId> {
        if let Some(id) = previous
            && self.holds(file, id)?
        {
            return Ok(id);
        }
        let mut random = [0; 16];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
        let id = ContentId(u128::from_ne_bytes(random));
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let stored = rustix::fs::openat(&self.dir, Self::file_name(id), flags, Mode::from_raw_mode(0o600))?;
        if let Err(error) = copy(file, stored.as_fd()) {
            self.remove(id)?;
            return Err(error);
        }
        Ok(id)
    }

    fn holds(&self, file: BorrowedFd<'_>, id: ContentId) -> io::Result<bool> {
        let stored = self.stored(id)?;
        let (a, b) = (File::from(file.try_clone_to_owned()?), stored);
        let len = a.metadata()?.len();
        if b.metadata()?.len() != len {
            return Ok(false);
        }
        let (mut left, mut right) = (vec![0; BLOCK], vec![0; BLOCK]);
        let mut at = 0;
        while at < len {
            let n = BLOCK.min((len - at) as usize);
            read_quietly(&a, &mut left[..n], at)?;
            b.read_exact_at(&mut right[..n], at)?;
            if left[..n] != right[..n] {
                return Ok(false);
            }
            at += n as u64;
        }
        Ok(true)
    }

    fn put_back(&self, file: BorrowedFd<'_>, id: ContentId) -> io::Result<()> {
        copy(self.stored(id)?.as_fd(), file)
    }
}

/// Reads without anybody being told who watches the file (inotify). What cannot be mapped is read as usual.
fn read_quietly(file: &File, buffer: &mut [u8], at: u64) -> io::Result<()> {
    match View::of(file.as_fd(), at, buffer.len()) {
        Ok(view) => view.read(buffer),
        Err(_) => file.read_exact_at(buffer, at),
    }
}

/// Makes one file hold what the other does, holes included. The offset of `from`, which may be a duplicate of the
/// program's own description, is what it was when this is done.
fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let offset = rustix::fs::tell(from)?;
    let copied = copy_moving(from, to);
    rustix::fs::seek(from, SeekFrom::Start(offset))?;
    copied
}

/// As [`copy`], but for the offset: looking for holes moves it.
fn copy_moving(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let source = File::from(from.try_clone_to_owned()?);
    let target = File::from(to.try_clone_to_owned()?);
    let len = source.metadata()?.len();
    if target.metadata()?.len() != 0 {
        target.set_len(0)?;
    }
    if len != 0 {
        target.set_len(len)?;
    }
    let mut buffer = vec![0; BLOCK];
    let mut at = 0;
    while at < len {
        let data = match rustix::fs::seek(&source, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(Errno::NXIO) => break,
            Err(e) => return Err(e.into()),
        };
        let hole = rustix::fs::seek(&source, SeekFrom::Hole(data))?;
        at = data;
        while at < hole {
            let n = BLOCK.min((hole - at) as usize);
            read_quietly(&source, &mut buffer[..n], at)?;
            target.write_all_at(&buffer[..n], at)?;
            at += n as u64;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_and_holes_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = ContentDirectory::open(dir.path()).unwrap();
        let file = tempfile::tempfile().unwrap();
        file.set_len(3_000_000).unwrap();
        file.write_all_at(b"middle", 1_500_000).unwrap();
        let id = store.keep(file.as_fd(), None).unwrap();
        assert_eq!(store.keep(file.as_fd(), Some(id)).unwrap(), id);
        file.write_all_at(b"other!", 1_500_000).unwrap();
        assert!(!store.holds(file.as_fd(), id).unwrap());
        assert_ne!(store.keep(file.as_fd(), Some(id)).unwrap(), id);
        file.set_len(10).unwrap();
        store.put_back(file.as_fd(), id).unwrap();
        assert!(store.holds(file.as_fd(), id).unwrap());
        use std::os::unix::fs::MetadataExt;
        assert!(file.metadata().unwrap().blocks() < 1000, "the hole was filled");
        store.remove(id).unwrap();
        assert!(store.put_back(file.as_fd(), id).is_err());
    }
}
