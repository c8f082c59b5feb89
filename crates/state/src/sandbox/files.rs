//! Looking at states and taking files out of them: diff, restore, export, commit.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use deltabox_api::{Change, ChangeKind, CommitRequest, CommitResult, Diff, ExportFormat, Root};
use deltabox_image::{Action, ApplyOptions, Content, Entry, ExportOptions, Extent, ImageConfig, Kind};
use deltabox_layers::{self as layers, EntryKind, FileView, TextDiff};
use rustix::fs::SeekFrom;

use super::Sandbox;
use crate::base;
use crate::error::{Error, Result};

/// A state's files, for work on any thread while the sandbox goes on.
pub struct Export {
    view: FileView,
    /// Lower directories of the base that go into an image.
    base: Vec<PathBuf>,
    config: ImageConfig,
    scratch: PathBuf,
}

impl Sandbox {
    /// What changed between two states. Absent `from`: the current checkpoint, or the base if there is none; absent
    /// `to`: the live state. `path`: only what is there or below.
    pub fn diff(
        &mut self,
        from: Option<&str>,
        to: Option<&str>,
        text: bool,
        path: Option<&str>,
    ) -> Result<Diff> {
        let from_name = from.unwrap_or("@");
        let before = match (from, self.tree.current()) {
            (None, None) => None,
            _ => Some(self.view(from_name)?),
        };
        let after = match to {
            Some(to) => self.view(to)?,
            None => self.live()?.files.view()?,
        };
        let changes = match &before {
            Some(before) => before.diff(&after)?,
            None => after.changes_to_base()?,
        };
        let only = path.map(|path| PathBuf::from(path.trim_start_matches('/')));
        let wanted = |change: &layers::Change| only.as_ref().is_none_or(|only| change.path.starts_with(only));
        let mut result = Vec::new();
        for change in changes.iter().filter(|change| wanted(change)) {
            let text = match (&before, text) {
                (Some(before), true) => text_of(before, &after, change)?,
                _ => None,
            };
            result.push(api_change(change, text));
        }
        Ok(Diff {
            from: before.map_or_else(|| "base".into(), |_| from_name.into()),
            to: to.unwrap_or("live").into(),
            changes: result,
        })
    }

    fn view(&self, reference: &str) -> Result<FileView> {
        let node = self.tree.resolve(reference)?;
        let base = base::of_record(&self.shared, &self.record);
        Ok(self.shared.store.view(&base, &node.frozen)?)
    }

    /// Packs what `path` was at a checkpoint, for being put back: a tar whose names are relative to `path`'s parent.
    pub fn pack_path(&self, path: &str, from: &str, out: File) -> Result<()> {
        let view = self.view(from)?;
        let path = Path::new(path.trim_matches('/'));
        if path.as_os_str().is_empty() {
            return Err(Error::usage("the root as a whole is restored by a rollback"));
        }
        if view.entry(path)?.is_none() {
            return Err(Error::not_found(format!(
                "/{} does not exist at checkpoint {from}",
                path.display()
            )));
        }
        let parent = path.parent().unwrap_or(Path::new(""));
        let entries = all_entries(&view, path)?.into_iter().map(|(name, entry)| {
            let name = name.strip_prefix(parent).map(Path::to_path_buf).unwrap_or(name);
            (name, entry)
        });
        let packed = deltabox_image::export_rootfs(image_entries(entries.collect()), io::BufWriter::new(out));
        packed.map(drop).map_err(Error::from)
    }

    /// A checkpoint's files, to be written as a tar on another thread.
    pub fn export(&self, checkpoint: &str) -> Result<Export> {
        let record = &self.record;
        let view = self.view(checkpoint)?;
        // The host's own root is not part of an image; the scaffold below the others fills gaps only while it runs.
        let base = match record.root {
            Root::Host => Vec::new(),
            _ => record.base[..record.base.len().saturating_sub(1)].to_vec(),
        };
        let config = ImageConfig {
            env: record
                .env
                .iter()
                .map(|(key, value)| format!("{key}={value}"))
                .collect(),
            workdir: record.workdir.clone().unwrap_or_default(),
            user: record.user.clone().unwrap_or_default(),
            ..ImageConfig::default()
        };
        Ok(Export {
            view,
            base,
            config,
            scratch: self.shared.config.home.clone(),
        })
    }
}

impl Export {
    /// Writes the tar.
    pub fn write(&self, format: ExportFormat, out: impl Write) -> Result<()> {
        match format {
            ExportFormat::Rootfs => {
                let entries = all_entries(&self.view, Path::new(""))?;
                deltabox_image::export_rootfs(image_entries(entries), out)
                    .map(drop)
                    .map_err(Error::from)
            }
            ExportFormat::Oci => {
                let options = ExportOptions {
                    config: self.config.clone(),
                    ..ExportOptions::default()
                };
                let entries = self.changed_entries(Path::new(""))?;
                deltabox_image::export_to(entries, &self.base, out, &self.scratch, &options)
                    .map(drop)
                    .map_err(Error::from)
            }
        }
    }

    /// Applies the changes below a directory to a directory of the host, or says what would be done.
    pub fn commit(&self, request: &CommitRequest) -> Result<CommitResult> {
        let target = Path::new(&request.target);
        if !target.is_absolute() || !target.is_dir() {
            return Err(Error::usage(format!(
                "{} is not an absolute path of a directory on the host",
                target.display()
            )));
        }
        let from = Path::new(request.from_path.trim_matches('/'));
        let options = ApplyOptions {
            dry_run: request.preview,
            ..ApplyOptions::default()
        };
        let planned = deltabox_image::apply(self.changed_entries(from)?, target, &options)?;
        let changes = planned
            .into_iter()
            .filter(|change| change.action != Action::Skip)
            .map(|change| Change {
                path: String::from_utf8_lossy(&change.path).into_owned(),
                kind: match change.action {
                    Action::Create => ChangeKind::Added,
                    Action::Delete => ChangeKind::Deleted,
                    Action::Modify | Action::Replace | Action::Skip => ChangeKind::Changed,
                },
                file_type: change.what.into(),
                size_before_bytes: None,
                size_after_bytes: Some(change.size),
                text: None,
            });
        Ok(CommitResult {
            applied: !request.preview,
            changes: changes.collect(),
        })
    }

    /// What differs from the base at or below `from`, named relative to it.
    fn changed_entries(
        &self,
        from: &Path,
    ) -> Result<impl Iterator<Item = deltabox_image::Result<Entry>> + use<>> {
        let mut changes: Vec<_> = self.view.changes_to_base()?;
        changes.retain(|change| {
            change.path.starts_with(from) && (change.path != from || from.as_os_str().is_empty())
        });
        let mut deleted = Vec::new();
        let mut present = Vec::new();
        for change in changes {
            let name = change
                .path
                .strip_prefix(from)
                .map(Path::to_path_buf)
                .unwrap_or(change.path);
            match change.after {
                Some(entry) => present.push((name, entry)),
                None => deleted.push(whiteout(name)),
            }
        }
        Ok(deleted.into_iter().map(Ok).chain(image_entries(present)))
    }
}

/// Every file of a state at or below a path, parents first.
fn all_entries(view: &FileView, below: &Path) -> Result<Vec<(PathBuf, layers::Entry)>> {
    let mut entries = Vec::new();
    view.walk(&mut |path, entry| {
        if path.starts_with(below) {
            entries.push((path.to_path_buf(), entry.clone()));
        }
        Ok(())
    })?;
    entries.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(entries)
}

/// Entries for an archive; further names of a file become hard links to its first.
fn image_entries(
    entries: Vec<(PathBuf, layers::Entry)>,
) -> impl Iterator<Item = deltabox_image::Result<Entry>> {
    let mut first_names: HashMap<(usize, u64), Vec<u8>> = HashMap::new();
    entries.into_iter().map(move |(path, entry)| {
        let name = path.as_os_str().as_bytes().to_vec();
        let linked = match entry.kind {
            EntryKind::Directory => None,
            _ if entry.names < 2 => None,
            _ => first_names.get(&entry.file_id).cloned(),
        };
        if linked.is_none() && entry.names > 1 {
            first_names.insert(entry.file_id, name.clone());
        }
        let kind = match linked {
            Some(first) => Kind::HardLink(first),
            None => kind_of(&entry).map_err(unreadable)?,
        };
        let xattrs = entry
            .xattrs()
            .map_err(|error| unreadable(io::Error::other(error)))?;
        Ok(Entry {
            path: name,
            kind,
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime_ns: i128::from(entry.mtime.0) * 1_000_000_000 + i128::from(entry.mtime.1),
            xattrs: xattrs
                .into_iter()
                .map(|(key, value)| (key.into_vec(), value))
                .collect(),
        })
    })
}

fn unreadable(error: io::Error) -> deltabox_image::Error {
    deltabox_image::Error::Source(error.into())
}

fn whiteout(path: PathBuf) -> Entry {
    let path = path.into_os_string().into_vec();
    Entry {
        path,
        kind: Kind::Whiteout,
        mode: 0,
        uid: 0,
        gid: 0,
        mtime_ns: 0,
        xattrs: Vec::new(),
    }
}

fn kind_of(entry: &layers::Entry) -> io::Result<Kind> {
    let device = |block| Kind::Device {
        block,
        major: rustix::fs::major(entry.device),
        minor: rustix::fs::minor(entry.device),
    };
    Ok(match entry.kind {
        EntryKind::Directory => Kind::Dir,
        EntryKind::Symlink => Kind::Symlink(
            entry
                .target()
                .map_err(io::Error::other)?
                .into_os_string()
                .into_vec(),
        ),
        EntryKind::Fifo => Kind::Fifo,
        EntryKind::Socket => Kind::Socket,
        EntryKind::CharacterDevice => device(false),
        EntryKind::BlockDevice => device(true),
        EntryKind::File => Kind::File(content(entry.open().map_err(io::Error::other)?)?),
    })
}

/// A file's data without its holes (`SEEK_DATA`, man 2 lseek).
fn content(mut file: File) -> io::Result<Content> {
    let size = file.metadata()?.len();
    let mut extents = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(&file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(&file, SeekFrom::Hole(start))?.min(size);
        extents.push(Extent {
            offset: start,
            len: end - start,
        });
        at = end;
    }
    file.rewind()?;
    let data = Box::new(Extents {
        file,
        extents: extents.clone(),
        at: 0,
    });
    Ok(Content { size, extents, data })
}

/// Reads the extents of a file one after another.
struct Extents {
    file: File,
    extents: Vec<Extent>,
    /// Bytes of the first extent that were read.
    at: u64,
}

impl Read for Extents {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        use std::os::unix::fs::FileExt;
        while let Some(extent) = self.extents.first() {
            let left = extent.len - self.at;
            if left == 0 {
                self.extents.remove(0);
                self.at = 0;
                continue;
            }
            let length = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let read = self
                .file
                .read_at(&mut buffer[..length], extent.offset + self.at)?;
            self.at += read as u64;
            return Ok(read);
        }
        Ok(0)
    }
}

fn text_of(before: &FileView, after: &FileView, change: &layers::Change) -> Result<Option<String>> {
    let is_file =
        |entry: &Option<layers::Entry>| entry.as_ref().is_none_or(|entry| entry.kind == EntryKind::File);
    if !is_file(&change.before) || !is_file(&change.after) {
        return Ok(None);
    }
    Ok(match before.text_diff(after, &change.path)? {
        TextDiff::Text(text) => Some(text).filter(|text| !text.is_empty()),
        TextDiff::Binary | TextDiff::TooLarge => None,
    })
}

fn api_change(change: &layers::Change, text: Option<String>) -> Change {
    let entry = change.after.as_ref().or(change.before.as_ref());
    Change {
        path: format!("/{}", change.path.display()),
        kind: match change.kind {
            layers::ChangeKind::Added => ChangeKind::Added,
            layers::ChangeKind::Changed => ChangeKind::Changed,
            layers::ChangeKind::Deleted => ChangeKind::Deleted,
        },
        file_type: entry
            .map_or("file", |entry| match entry.kind {
                EntryKind::File => "file",
                EntryKind::Directory => "directory",
                EntryKind::Symlink => "symlink",
                EntryKind::Fifo => "fifo",
                EntryKind::Socket => "socket",
                EntryKind::CharacterDevice | EntryKind::BlockDevice => "device",
            })
            .into(),
        size_before_bytes: change.before.as_ref().map(|entry| entry.size),
        size_after_bytes: change.after.as_ref().map(|entry| entry.size),
        text,
    }
}
