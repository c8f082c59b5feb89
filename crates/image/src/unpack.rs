//! One layer's tar stream, turned into a directory in overlayfs format.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid, XattrFlags};
use rustix::io::Errno;

use crate::entry::{Extent, components};
use crate::error::{Error, Result, shown};
use crate::limits::{Budget, limit};
use crate::root::{self, Links, OVERLAY_PREFIX, Reach, Root};
use crate::tar::acl;
use crate::tar::read::{Header, TarReader, from_io};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE_MARK: &[u8] = b".wh..wh..opq";
/// Other names of this form are bookkeeping of AUFS, which wrote the first images.
const AUFS_PREFIX: &[u8] = b".wh..wh.";
const WARNINGS_MAX: usize = 100;

/// What unpacking a layer told besides the files.
#[derive(Debug, Default)]
pub(crate) struct Unpacked {
    pub warnings: Vec<String>,
    /// The layer's root hides everything below.
    pub opaque_root: bool,
}

/// Unpacks a tar stream into the empty directory `target`.
pub(crate) fn unpack<R: Read>(
    stream: R,
    target: OwnedFd,
    layer: &str,
    keep_devices: bool,
    budget: &mut Budget,
) -> Result<(R, Unpacked)> {
    let limits = budget.limits.clone();
    let mut tar = TarReader::new(stream, layer, &limits);
    let mut unpacker = Unpacker {
        root: Root::new(target, Links::Beneath),
        layer,
        keep_devices,
        out: Unpacked::default(),
        dir_times: BTreeMap::new(),
        path: vec![],
        buffer: vec![0; 64 << 10],
    };
    unpacker.defaults(b"")?;
    while let Some(header) = tar.next_header()? {
        budget.take_entry()?;
        unpacker.entry(&header, &mut tar, budget)?;
    }
    unpacker.finish()?;
    Ok((tar.into_inner(), unpacker.out))
}

struct Unpacker<'a> {
    root: Root,
    layer: &'a str,
    keep_devices: bool,
    out: Unpacked,
    /// Set last: making an entry changes its directory's time.
    dir_times: BTreeMap<Vec<u8>, i128>,
    /// The entry at hand, for messages.
    path: Vec<u8>,
    buffer: Vec<u8>,
}

impl Unpacker<'_> {
    fn entry<R: Read>(
        &mut self,
        header: &Header,
        data: &mut TarReader<'_, R>,
        budget: &Budget,
    ) -> Result<()> {
        self.path.clone_from(&header.path);
        let path = self.clean(&header.path, budget)?;
        if path.is_empty() {
            return if header.kind == b'5' {
                self.directory(b"", header)
            } else {
                Err(self.refuse("the root is no directory"))
            };
        }
        let (parent, name) = root::split(&path);
        if parent
            .split(|&b| b == b'/')
            .any(|part| part.starts_with(WHITEOUT))
        {
            return Err(self.refuse("it is inside a whiteout"));
        }
        if name == OPAQUE_MARK {
            let dir = self.parent(parent)?;
            let dir = root::open_dir(&dir, b"").map_err(|e| self.create(e))?;
            self.out.opaque_root |= parent.is_empty();
            return root::set_opaque(&dir).map_err(|e| self.create(e));
        }
        if name.starts_with(AUFS_PREFIX) {
            return Ok(());
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return self.whiteout(parent, hidden);
        }
        match header.kind {
            // Before POSIX there was no type for directories.
            0 if header.path.ends_with(b"/") => self.directory(&path, header),
            b'0' | 0 | b'7' => match header.marked_kind.as_deref() {
                None => self.file(&path, header, data),
                Some(b"socket") => self.node(&path, header, FileType::Socket),
                Some(other) => Err(self.refuse(&format!("its kind {} is unknown", shown(other)))),
            },
            b'1' => self.hard_link(&path, header, budget),
            b'2' => self.symlink(&path, header, budget),
            b'3' => self.device(&path, header, FileType::CharacterDevice),
            b'4' => self.device(&path, header, FileType::BlockDevice),
            b'5' => self.directory(&path, header),
            b'6' => self.node(&path, header, FileType::Fifo),
            other => Err(self.refuse(&format!("its type {} is unknown", shown(&[other])))),
        }
    }

    /// The path as ours: relative, without `.`; everything that could lead elsewhere is refused.
    fn clean(&self, raw: &[u8], budget: &Budget) -> Result<Vec<u8>> {
        let limits = &budget.limits;
        if raw.len() > limits.path_bytes {
            return Err(limit(
                format!("{}: a path", self.layer),
                limits.path_bytes as u64,
                "bytes",
                "Limits::path_bytes",
            ));
        }
        if raw.starts_with(b"/") && raw.iter().any(|&b| b != b'/') {
            return Err(self.refuse(&format!("the path {} is absolute", shown(raw))));
        }
        let parts: Vec<&[u8]> = raw
            .split(|&b| b == b'/')
            .filter(|part| !part.is_empty() && *part != b".")
            .collect();
        if parts.contains(&&b".."[..]) {
            return Err(self.refuse(&format!("the path {} leads upwards", shown(raw))));
        }
        if parts.len() > limits.depth {
            return Err(limit(
                format!("{}: a path", self.layer),
                limits.depth as u64,
                "components",
                "Limits::depth",
            ));
        }
        let path = parts.join(&b'/');
        if components(&path).is_none() {
            return Err(self.refuse("a name in its path is longer than 255 bytes or holds a NUL byte"));
        }
        Ok(path)
    }

    /// Opens the parent directory, making what is missing of it.
    fn parent(&mut self, path: &[u8]) -> Result<std::rc::Rc<OwnedFd>> {
        match self.root.dir(path) {
            Ok(dir) => return Ok(dir),
            Err(Reach::Other(Errno::NOENT) | Reach::NotDirectory) if !path.is_empty() => {}
            Err(e) => return Err(self.unreachable(e)),
        }
        let (above, name) = root::split(path);
        let above = self.parent(above)?;
        match root::look(&above, name).map_err(|e| self.create(e))? {
            None => self.make_dir(&above, name, false)?,
            Some(stat) if root::is_whiteout(&stat) => self.make_dir(&above, name, true)?,
            Some(stat) if root::kind(&stat) == FileType::Symlink => {
                return Err(self.refuse("its parent is a symbolic link that leads nowhere"));
            }
            Some(_) => return Err(self.refuse("its parent is no directory")),
        }
        self.defaults(path)?;
        self.root.dir(path).map_err(|e| self.unreachable(e))
    }

    /// Makes a directory, in the place of a whiteout if there is one: it must go on hiding what it hid.
    fn make_dir(&mut self, parent: &OwnedFd, name: &[u8], over_whiteout: bool) -> Result<()> {
        if over_whiteout {
            rustix::fs::unlinkat(parent, name, AtFlags::empty()).map_err(|e| self.create(e))?;
            self.root.forget();
        }
        rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o700)).map_err(|e| self.create(e))?;
        if over_whiteout {
            let dir = root::open_dir(parent, name).map_err(|e| self.create(e))?;
            root::set_opaque(&dir).map_err(|e| self.create(e))?;
        }
        Ok(())
    }

    /// Attributes of a directory that no entry describes (yet).
    fn defaults(&mut self, path: &[u8]) -> Result<()> {
        let dir = self.root.dir(path).map_err(|e| self.unreachable(e))?;
        let dir = root::open_dir(&dir, b"").map_err(|e| self.create(e))?;
        rustix::fs::fchmod(&dir, Mode::from_raw_mode(0o755)).map_err(|e| self.create(e))?;
        rustix::fs::fchown(&dir, Some(Uid::ROOT), Some(Gid::ROOT)).map_err(|e| self.create(e))?;
        self.dir_times.insert(path.to_vec(), 0);
        Ok(())
    }

    /// Makes room for a new entry. Tells whether a whiteout was there.
    fn clear(&mut self, parent: &OwnedFd, name: &[u8]) -> Result<bool> {
        let Some(stat) = root::look(parent, name).map_err(|e| self.create(e))? else {
            return Ok(false);
        };
        root::remove(parent, name).map_err(|e| self.create(e))?;
        self.root.forget();
        Ok(root::is_whiteout(&stat))
    }

    fn directory(&mut self, path: &[u8], header: &Header) -> Result<()> {
        let (parent, name) = root::split(path);
        let parent = self.parent(parent)?;
        let there = if path.is_empty() {
            None
        } else {
            root::look(&parent, name).map_err(|e| self.create(e))?
        };
        match there {
            _ if path.is_empty() => {}
            Some(stat) if root::kind(&stat) == FileType::Directory => {}
            Some(stat) if root::is_whiteout(&stat) => self.make_dir(&parent, name, true)?,
            Some(_) => {
                self.clear(&parent, name)?;
                self.make_dir(&parent, name, false)?;
            }
            None => self.make_dir(&parent, name, false)?,
        }
        let dir = root::open_dir(&parent, name).map_err(|e| self.create(e))?;
        self.attributes_by_fd(&dir, header)?;
        self.dir_times.insert(path.to_vec(), header.mtime_ns);
        Ok(())
    }

    fn file<R: Read>(&mut self, path: &[u8], header: &Header, data: &mut TarReader<'_, R>) -> Result<()> {
        let (parent, name) = root::split(path);
        let parent = self.parent(parent)?;
        self.clear(&parent, name)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o600))
            .map_err(|e| self.create(e))?;
        let file = File::from(fd);
        match &header.sparse {
            None => self.write(
                &file,
                Extent {
                    offset: 0,
                    len: header.stored,
                },
                data,
            )?,
            Some((size, extents)) => {
                for &extent in extents {
                    self.write(&file, extent, data)?;
                }
                file.set_len(*size).map_err(|e| self.create_io(e))?;
            }
        }
        let fd = OwnedFd::from(file);
        self.attributes_by_fd(&fd, header)?;
        root::set_mtime(&parent, name, header.mtime_ns).map_err(|e| self.create(e))
    }

    fn write<R: Read>(&mut self, file: &File, extent: Extent, data: &mut TarReader<'_, R>) -> Result<()> {
        let mut at = extent.offset;
        let end = extent.offset + extent.len;
        while at < end {
            let want = self
                .buffer
                .len()
                .min(usize::try_from(end - at).unwrap_or(usize::MAX));
            let n = match data.read(&mut self.buffer[..want]) {
                Ok(0) => {
                    return Err(Error::damaged(
                        self.layer,
                        format!("file {} ends too early", shown(&self.path)),
                    ));
                }
                Ok(n) => n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(from_io(self.layer, e)),
            };
            file.write_all_at(&self.buffer[..n], at)
                .map_err(|e| self.create_io(e))?;
            at += n as u64;
        }
        Ok(())
    }

    fn symlink(&mut self, path: &[u8], header: &Header, budget: &Budget) -> Result<()> {
        if header.link.is_empty() || header.link.len() > budget.limits.path_bytes || header.link.contains(&0)
        {
            return Err(self.refuse("its link text is empty, too long or holds a NUL byte"));
        }
        let (parent, name) = root::split(path);
        let parent = self.parent(parent)?;
        self.clear(&parent, name)?;
        rustix::fs::symlinkat(&header.link[..], &parent, name).map_err(|e| self.create(e))?;
        self.attributes_by_name(&parent, name, header, false)
    }

    fn hard_link(&mut self, path: &[u8], header: &Header, budget: &Budget) -> Result<()> {
        let target = self.clean(&header.link, budget)?;
        if target == path {
            return Err(self.refuse("it is a hard link to itself"));
        }
        let (target_parent, target_name) = root::split(&target);
        let missing = || {
            format!(
                "it is a hard link to {}, which is not in this layer",
                shown(&target)
            )
        };
        let from = match self.root.dir(target_parent) {
            Ok(dir) => dir,
            Err(Reach::Other(Errno::NOENT) | Reach::NotDirectory) => return Err(self.refuse(&missing())),
            Err(e) => return Err(self.unreachable(e)),
        };
        let stat = match root::look(&from, target_name).map_err(|e| self.create(e))? {
            Some(stat) if !root::is_whiteout(&stat) && !target_name.is_empty() => stat,
            _ => return Err(self.refuse(&missing())),
        };
        if root::kind(&stat) == FileType::Directory {
            return Err(self.refuse("it is a hard link to a directory"));
        }
        let (parent, name) = root::split(path);
        let parent = self.parent(parent)?;
        if let Some(there) = root::look(&parent, name).map_err(|e| self.create(e))?
            && (there.st_dev, there.st_ino) == (stat.st_dev, stat.st_ino)
        {
            return Ok(());
        }
        self.clear(&parent, name)?;
        match rustix::fs::linkat(&from, target_name, &parent, name, AtFlags::empty()) {
            Err(Errno::NOENT) => Err(self.refuse("it is a hard link to something inside what it replaces")),
            result => result.map_err(|e| self.create(e)),
        }
    }

    fn node(&mut self, path: &[u8], header: &Header, kind: FileType) -> Result<()> {
        let (parent, name) = root::split(path);
        let parent = self.parent(parent)?;
        self.clear(&parent, name)?;
        let device = match kind {
            FileType::CharacterDevice | FileType::BlockDevice => {
                rustix::fs::makedev(header.major, header.minor)
            }
            _ => 0,
        };
        rustix::fs::mknodat(&parent, name, kind, Mode::from_raw_mode(0o600), device)
            .map_err(|e| self.create(e))?;
        self.attributes_by_name(&parent, name, header, true)
    }

    fn device(&mut self, path: &[u8], header: &Header, kind: FileType) -> Result<()> {
        let character = kind == FileType::CharacterDevice;
        if self.keep_devices && !(character && header.major == 0 && header.minor == 0) {
            return self.node(path, header, kind);
        }
        let kind = if character { "character" } else { "block" };
        self.warn(format!(
            "left out the {kind} device {}:{}",
            header.major, header.minor
        ));
        Ok(())
    }

    fn whiteout(&mut self, parent: &[u8], hidden: &[u8]) -> Result<()> {
        if hidden.is_empty() || hidden == b"." || hidden == b".." {
            return Err(self.refuse("it is a whiteout of no name"));
        }
        let parent = self.parent(parent)?;
        match root::look(&parent, hidden).map_err(|e| self.create(e))? {
            None => {
                let (kind, mode) = (FileType::CharacterDevice, Mode::empty());
                rustix::fs::mknodat(&parent, hidden, kind, mode, 0).map_err(|e| self.create(e))?;
                root::set_mtime(&parent, hidden, 0).map_err(|e| self.create(e))
            }
            // A whiteout hides what lower layers have, never what its own layer brings.
            Some(stat) if root::kind(&stat) == FileType::Directory => {
                let dir = root::open_dir(&parent, hidden).map_err(|e| self.create(e))?;
                root::set_opaque(&dir).map_err(|e| self.create(e))
            }
            Some(_) => Ok(()),
        }
    }

    fn attributes_by_fd(&mut self, fd: &OwnedFd, header: &Header) -> Result<()> {
        // Owner first: chown(2) clears set-uid bits and capabilities.
        let (uid, gid) = (Uid::from_raw(header.uid), Gid::from_raw(header.gid));
        rustix::fs::fchown(fd, Some(uid), Some(gid)).map_err(|e| self.create(e))?;
        rustix::fs::fchmod(fd, Mode::from_raw_mode(header.mode)).map_err(|e| self.create(e))?;
        self.xattrs(header, |name, value| {
            rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty())
        })
    }

    fn attributes_by_name(&mut self, dir: &OwnedFd, name: &[u8], header: &Header, mode: bool) -> Result<()> {
        let (uid, gid) = (Uid::from_raw(header.uid), Gid::from_raw(header.gid));
        rustix::fs::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| self.create(e))?;
        if mode {
            let mode = Mode::from_raw_mode(header.mode);
            rustix::fs::chmodat(dir, name, mode, AtFlags::empty()).map_err(|e| self.create(e))?;
        }
        let path = root::proc_path(dir, name);
        self.xattrs(header, |name, value| {
            rustix::fs::lsetxattr(&path[..], name, value, XattrFlags::empty())
        })?;
        root::set_mtime(dir, name, header.mtime_ns).map_err(|e| self.create(e))
    }

    fn xattrs(
        &mut self,
        header: &Header,
        set: impl Fn(&[u8], &[u8]) -> rustix::io::Result<()>,
    ) -> Result<()> {
        let mut wanted = vec![];
        for (is_default, text) in &header.acls {
            let name: &[u8] = if *is_default {
                b"system.posix_acl_default"
            } else {
                b"system.posix_acl_access"
            };
            match acl::from_text(text) {
                Ok(value) => wanted.push((name.to_vec(), value)),
                Err(why) => self.warn(format!("left out an access control list: {why}")),
            }
        }
        wanted.extend(header.xattrs.iter().cloned());
        for (name, value) in wanted {
            if name.contains(&0) || name.starts_with(OVERLAY_PREFIX) {
                self.warn(format!(
                    "left out the attribute {}, which is overlayfs's own",
                    shown(&name)
                ));
                continue;
            }
            match set(&name, &value) {
                Ok(()) => {}
                Err(e @ (Errno::OPNOTSUPP | Errno::PERM | Errno::INVAL | Errno::RANGE)) => {
                    self.warn(format!("left out the attribute {}: {e}", shown(&name)));
                }
                Err(e) => return Err(self.create(e)),
            }
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        for (path, ns) in std::mem::take(&mut self.dir_times) {
            // What a later entry replaced by something else has that entry's time.
            let (parent, name) = root::split(&path);
            let Ok(parent) = self.root.dir(parent) else {
                continue;
            };
            let there =
                root::look(&parent, if name.is_empty() { b"." } else { name }).map_err(|e| self.create(e))?;
            if there.is_some_and(|stat| root::kind(&stat) == FileType::Directory) {
                root::set_mtime(&parent, name, ns).map_err(|e| self.create(e))?;
            }
        }
        Ok(())
    }

    fn warn(&mut self, what: String) {
        if self.out.warnings.len() < WARNINGS_MAX {
            self.out
                .warnings
                .push(format!("{}: {}: {what}", self.layer, shown(&self.path)));
        } else if self.out.warnings.len() == WARNINGS_MAX {
            self.out
                .warnings
                .push(format!("{}: more warnings were left out", self.layer));
        }
    }

    fn refuse(&self, why: &str) -> Error {
        Error::Unsafe {
            layer: self.layer.into(),
            entry: self.path.clone(),
            why: why.into(),
        }
    }

    fn unreachable(&self, reach: Reach) -> Error {
        match reach {
            Reach::Outside => self.refuse("its parent is a symbolic link that leads out of the root"),
            Reach::NotDirectory => self.refuse("its parent is no directory"),
            Reach::Other(e) => self.create(e),
        }
    }

    fn create_io(&self, e: std::io::Error) -> Error {
        match Errno::from_io_error(&e) {
            Some(errno) => self.create(errno),
            None => Error::Create {
                layer: self.layer.into(),
                entry: self.path.clone(),
                why: e.to_string(),
            },
        }
    }

    fn create(&self, e: Errno) -> Error {
        let remedy = match e {
            Errno::NOSPC | Errno::DQUOT => "; free some space or choose another directory",
            Errno::PERM | Errno::ACCESS => "; run as root on a filesystem that holds owners and devices",
            Errno::OPNOTSUPP => "; choose a directory on a filesystem with extended attributes",
            _ => "",
        };
        Error::Create {
            layer: self.layer.into(),
            entry: self.path.clone(),
            why: format!("{e}{remedy}"),
        }
    }
}
