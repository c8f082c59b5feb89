//! The entries of a layer, carried out on a directory of the host.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Uid, XattrFlags};
use rustix::io::Errno;

use crate::entry::{Content, Entry, Kind, components};
use crate::error::{Error, Result};
use crate::root::{self, Links, OVERLAY_PREFIX, Reach, Root};
use crate::staging::{open_dir, unique};

/// How to apply.
#[derive(Debug, Clone, Default)]
pub struct ApplyOptions {
    /// Only tell what would be done.
    pub dry_run: bool,
    /// Owner and group of everything, in place of those in the layer.
    pub owner: Option<(u32, u32)>,
    /// Keeps set-uid and set-gid bits of files, and file capabilities. Whoever could write in the sandbox
    /// then decides what runs as root on the host.
    pub keep_privileges: bool,
}

/// One change to the directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedChange {
    /// Path relative to the directory.
    pub path: Vec<u8>,
    /// What is (to be) done.
    pub action: Action,
    /// What it is: `file`, `directory`, `symlink`, `hard link`, `fifo`, `socket`, `device` or `deletion`.
    pub what: &'static str,
    /// Logical size of a file in bytes.
    pub size: u64,
    /// Remarks, such as a set-uid bit that is not carried over.
    pub note: Option<&'static str>,
}

/// What happens to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nothing is there yet.
    Create,
    /// Something of the same kind is there and gets this content or these attributes.
    Modify,
    /// Something of another kind is there and is removed first, with all inside it.
    Replace,
    /// It is removed, with all inside it.
    Delete,
    /// It is left out, for the reason in the note.
    Skip,
}

/// Carries the entries out on `target`, in their order (parents first, hard links after their targets), and
/// returns what was done; with [`ApplyOptions::dry_run`], what would be. Parents are never reached through
/// symbolic links or mount points of the target. Each file changes in one step; the whole does not: after
/// an error, the entries before it are done.
pub fn apply<I>(entries: I, target: &Path, options: &ApplyOptions) -> Result<Vec<PlannedChange>>
where
    I: IntoIterator<Item = Result<Entry>>,
{
    let root = Root::new(open_dir(target)?, Links::Never);
    let mut run = Run {
        root,
        options,
        changes: vec![],
        emptied: HashSet::new(),
        dir_times: vec![],
    };
    for entry in entries {
        run.entry(entry?)?;
    }
    // Last, since every change in a directory changes its time; children before parents.
    for (path, ns) in std::mem::take(&mut run.dir_times).into_iter().rev() {
        let dir = run.root.dir(&path).map_err(|e| unreachable(&path, e))?;
        root::set_mtime(&dir, b"", ns).map_err(|e| failed(&path, e))?;
    }
    Ok(run.changes)
}

struct Run<'a> {
    root: Root,
    options: &'a ApplyOptions,
    changes: Vec<PlannedChange>,
    /// Directories of which a dry run has to act as if they were new and empty.
    emptied: HashSet<Vec<u8>>,
    dir_times: Vec<(Vec<u8>, i128)>,
}

impl Run<'_> {
    fn entry(&mut self, entry: Entry) -> Result<()> {
        let valid = components(&entry.path).is_some();
        if !valid || (entry.path.is_empty() && !matches!(entry.kind, Kind::Dir | Kind::OpaqueDir)) {
            return Err(refuse(&entry.path, "its path is no path inside the directory"));
        }
        let there = self.look(&entry.path)?;
        let is_dir = there.is_some_and(|stat| root::kind(&stat) == FileType::Directory);
        match &entry.kind {
            Kind::Whiteout => {
                if there.is_some() {
                    self.note(&entry.path, Action::Delete, "deletion", 0, None);
                    self.remove(&entry.path)?;
                }
                return Ok(());
            }
            Kind::Dir => return self.directory(entry, there, false),
            Kind::OpaqueDir => return self.directory(entry, there, true),
            Kind::Device { .. } => {
                self.note(
                    &entry.path,
                    Action::Skip,
                    "device",
                    0,
                    Some("device nodes are not made on the host"),
                );
                return Ok(());
            }
            _ => {}
        }
        let (what, wanted, size) = match &entry.kind {
            Kind::File(content) => ("file", FileType::RegularFile, content.size),
            Kind::Symlink(_) => ("symlink", FileType::Symlink, 0),
            Kind::Fifo => ("fifo", FileType::Fifo, 0),
            Kind::Socket => ("socket", FileType::Socket, 0),
            _ => ("hard link", FileType::RegularFile, 0),
        };
        let action = match there {
            None => Action::Create,
            Some(stat) if root::kind(&stat) == wanted => Action::Modify,
            Some(_) => Action::Replace,
        };
        let is_file = matches!(entry.kind, Kind::File(_));
        self.note(
            &entry.path,
            action,
            what,
            size,
            self.privilege_note(&entry, is_file),
        );
        if self.options.dry_run {
            Ok(())
        } else {
            self.put(entry, is_dir)
        }
    }

    fn privilege_note(&self, entry: &Entry, is_file: bool) -> Option<&'static str> {
        let has = is_file
            && (entry.mode & 0o6000 != 0
                || entry
                    .xattrs
                    .iter()
                    .any(|(name, _)| name == b"security.capability"));
        (has && !self.options.keep_privileges).then_some("without its set-uid bits and capabilities")
    }

    fn note(
        &mut self,
        path: &[u8],
        action: Action,
        what: &'static str,
        size: u64,
        note: Option<&'static str>,
    ) {
        self.changes.push(PlannedChange {
            path: path.to_vec(),
            action,
            what,
            size,
            note,
        });
    }

    /// What is at a path of the target, or would be by now.
    fn look(&mut self, path: &[u8]) -> Result<Option<Stat>> {
        if path.is_empty() {
            return rustix::fs::fstat(&self.root.fd)
                .map(Some)
                .map_err(|e| failed(path, e));
        }
        let (parent, name) = root::split(path);
        if self.options.dry_run && (self.emptied.contains(path) || self.below_emptied(parent)) {
            return Ok(None);
        }
        match self.root.dir(parent) {
            Ok(dir) => root::look(&dir, name).map_err(|e| failed(path, e)),
            Err(Reach::Other(Errno::NOENT)) => Ok(None),
            Err(e) => Err(unreachable(path, e)),
        }
    }

    fn below_emptied(&self, mut dir: &[u8]) -> bool {
        loop {
            if self.emptied.contains(dir) {
                return true;
            }
            if dir.is_empty() {
                return false;
            }
            dir = root::split(dir).0;
        }
    }

    fn directory(&mut self, entry: Entry, there: Option<Stat>, opaque: bool) -> Result<()> {
        let path = entry.path.clone();
        let is_dir = there.is_some_and(|stat| root::kind(&stat) == FileType::Directory);
        match there {
            Some(stat) if is_dir => {
                if opaque {
                    self.empty(&path)?;
                }
                if !path.is_empty() && self.differs(&entry, &stat) {
                    self.note(&path, Action::Modify, "directory", 0, None);
                }
            }
            Some(_) => self.note(&path, Action::Replace, "directory", 0, None),
            None => self.note(&path, Action::Create, "directory", 0, None),
        }
        if self.options.dry_run {
            if !is_dir {
                self.emptied.insert(path);
            }
            return Ok(());
        }
        if !is_dir {
            let (parent, name) = root::split(&path);
            let parent = self.parent(parent)?;
            root::remove(&parent, name).map_err(|e| failed(&path, e))?;
            self.root.forget();
            rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o700)).map_err(|e| failed(&path, e))?;
        }
        // The directory itself is the host's, not the layer's.
        if path.is_empty() {
            return Ok(());
        }
        let dir = self.root.dir(&path).map_err(|e| unreachable(&path, e))?;
        let dir = root::open_dir(&dir, b"").map_err(|e| failed(&path, e))?;
        self.attributes(&dir, &entry, false)?;
        self.dir_times.push((path, entry.mtime_ns));
        Ok(())
    }

    fn differs(&self, entry: &Entry, stat: &Stat) -> bool {
        let (uid, gid) = self.options.owner.unwrap_or((entry.uid, entry.gid));
        (stat.st_mode & 0o7777, stat.st_uid, stat.st_gid) != (entry.mode & 0o7777, uid, gid)
    }

    /// Removes what is in a directory whose layer hides everything below.
    fn empty(&mut self, path: &[u8]) -> Result<()> {
        let dir = self.root.dir(path).map_err(|e| unreachable(path, e))?;
        let dir = root::open_dir(&dir, b"").map_err(|e| failed(path, e))?;
        for name in root::children(&dir).map_err(|e| failed(path, e))? {
            let child = if path.is_empty() {
                name.clone()
            } else {
                [path, b"/", &name].concat()
            };
            self.note(&child, Action::Delete, "deletion", 0, None);
            if !self.options.dry_run {
                root::remove(&dir, &name).map_err(|e| failed(&child, e))?;
            }
        }
        self.root.forget();
        if self.options.dry_run {
            self.emptied.insert(path.to_vec());
        }
        Ok(())
    }

    fn remove(&mut self, path: &[u8]) -> Result<()> {
        if self.options.dry_run {
            self.emptied.insert(path.to_vec());
            return Ok(());
        }
        let (parent, name) = root::split(path);
        let parent = self.root.dir(parent).map_err(|e| unreachable(path, e))?;
        root::remove(&parent, name).map_err(|e| failed(path, e))?;
        self.root.forget();
        Ok(())
    }

    /// Opens a parent, making what is missing of it (layers normally bring all parents themselves).
    fn parent(&mut self, path: &[u8]) -> Result<Rc<OwnedFd>> {
        match self.root.dir(path) {
            Err(Reach::Other(Errno::NOENT)) if !path.is_empty() => {
                let (above, name) = root::split(path);
                let above = self.parent(above)?;
                rustix::fs::mkdirat(&above, name, Mode::from_raw_mode(0o755)).map_err(|e| failed(path, e))?;
                self.root.dir(path).map_err(|e| unreachable(path, e))
            }
            other => other.map_err(|e| unreachable(path, e)),
        }
    }

    /// Makes a non-directory under a temporary name and moves it into place.
    fn put(&mut self, mut entry: Entry, over_dir: bool) -> Result<()> {
        let path = entry.path.clone();
        let (parent, name) = root::split(&path);
        let parent = self.parent(parent)?;
        let temporary = Temporary {
            dir: parent.clone(),
            name: format!(".apply-{}", unique()).into_bytes(),
        };
        let (dir, new) = (&*parent, &temporary.name[..]);
        match std::mem::replace(&mut entry.kind, Kind::Fifo) {
            Kind::File(content) => self.file(dir, new, content, &entry)?,
            Kind::Symlink(link) => self
                .symlink(dir, new, &link, &entry)
                .map_err(|e| failed(&path, e))?,
            Kind::HardLink(target) => {
                if components(&target).is_none_or(|c| c.is_empty()) {
                    return Err(refuse(
                        &path,
                        "its hard link target is no path inside the directory",
                    ));
                }
                let (above, last) = root::split(&target);
                let from = self.root.dir(above).map_err(|e| unreachable(&target, e))?;
                rustix::fs::linkat(&from, last, dir, new, AtFlags::empty()).map_err(|e| failed(&path, e))?;
            }
            Kind::Socket => self.node(dir, new, FileType::Socket, &entry)?,
            _ => self.node(dir, new, FileType::Fifo, &entry)?,
        }
        if over_dir {
            root::remove(dir, name).map_err(|e| failed(&path, e))?;
            self.root.forget();
        }
        rustix::fs::renameat(dir, new, dir, name).map_err(|e| failed(&path, e))
    }

    fn symlink(&self, dir: &OwnedFd, name: &[u8], link: &[u8], entry: &Entry) -> rustix::io::Result<()> {
        let (uid, gid) = self.owner(entry);
        rustix::fs::symlinkat(link, dir, name)?;
        rustix::fs::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        root::set_mtime(dir, name, entry.mtime_ns)
    }

    fn file(&self, dir: &OwnedFd, name: &[u8], mut content: Content, entry: &Entry) -> Result<()> {
        if !content.extents_are_valid() {
            return Err(refuse(&entry.path, "its data extents overlap or pass its end"));
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o600))
            .map_err(|e| failed(&entry.path, e))?;
        let file = File::from(fd);
        write_content(&file, &mut content).map_err(|e| refuse(&entry.path, &e.to_string()))?;
        let fd = OwnedFd::from(file);
        self.attributes(&fd, entry, true)?;
        root::set_mtime(dir, name, entry.mtime_ns).map_err(|e| failed(&entry.path, e))
    }

    fn node(&self, dir: &OwnedFd, name: &[u8], kind: FileType, entry: &Entry) -> Result<()> {
        let (uid, gid) = self.owner(entry);
        let make = || {
            rustix::fs::mknodat(dir, name, kind, Mode::from_raw_mode(0o600), 0)?;
            rustix::fs::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
            rustix::fs::chmodat(
                dir,
                name,
                Mode::from_raw_mode(entry.mode & 0o777),
                AtFlags::empty(),
            )?;
            root::set_mtime(dir, name, entry.mtime_ns)
        };
        make().map_err(|e| failed(&entry.path, e))
    }

    fn owner(&self, entry: &Entry) -> (Uid, Gid) {
        let (uid, gid) = self.options.owner.unwrap_or((entry.uid, entry.gid));
        (Uid::from_raw(uid), Gid::from_raw(gid))
    }

    fn attributes(&self, fd: &OwnedFd, entry: &Entry, is_file: bool) -> Result<()> {
        let keep = self.options.keep_privileges || !is_file;
        let (uid, gid) = self.owner(entry);
        rustix::fs::fchown(fd, Some(uid), Some(gid)).map_err(|e| failed(&entry.path, e))?;
        let mode = entry.mode & if keep { 0o7777 } else { 0o1777 };
        rustix::fs::fchmod(fd, Mode::from_raw_mode(mode)).map_err(|e| failed(&entry.path, e))?;
        for (name, value) in &entry.xattrs {
            let dropped = name.starts_with(OVERLAY_PREFIX) || (!keep && name == b"security.capability");
            if !dropped {
                let set = rustix::fs::fsetxattr(fd, &name[..], value, XattrFlags::empty());
                set.map_err(|e| {
                    refuse(
                        &entry.path,
                        &format!("attribute {}: {e}", crate::error::shown(name)),
                    )
                })?;
            }
        }
        Ok(())
    }
}

/// Something under a temporary name; it is removed unless it was moved away.
struct Temporary {
    dir: Rc<OwnedFd>,
    name: Vec<u8>,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = rustix::fs::unlinkat(&*self.dir, &self.name[..], AtFlags::empty());
    }
}

fn write_content(file: &File, content: &mut Content) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    for extent in std::mem::take(&mut content.extents) {
        let (mut at, end) = (extent.offset, extent.offset + extent.len);
        while at < end {
            let want = buffer.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
            let n = content.data.read(&mut buffer[..want])?;
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            file.write_all_at(&buffer[..n], at)?;
            at += n as u64;
        }
    }
    file.set_len(content.size)
}

fn refuse(path: &[u8], why: &str) -> Error {
    Error::Entry {
        entry: path.to_vec(),
        why: why.to_owned(),
    }
}

fn failed(path: &[u8], e: Errno) -> Error {
    refuse(path, &e.to_string())
}

fn unreachable(path: &[u8], reach: Reach) -> Error {
    match reach {
        Reach::Outside => refuse(
            path,
            "it is reached through a symbolic link or mount point of the directory; remove that first",
        ),
        Reach::NotDirectory => refuse(path, "its parent is no directory"),
        Reach::Other(e) => failed(path, e),
    }
}
