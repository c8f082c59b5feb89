//! Putting a tar from inside a sandbox onto the host.
//!
//! What comes from inside is not trusted. It is unpacked in an empty directory beside the target, where no link that
//! it brings can lead anywhere, and only then moved into place; nothing follows links on the way. Permissions are
//! kept, but not set-user-id and the like; devices, sockets and FIFOs are left out and named.

use std::error::Error;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};

use deltabox_api::{ApiError, ErrorKind};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
use tar::EntryType;

use crate::cli::failure::{Failure, usage};
use crate::cli::output::printable;

/// Which part of the source is wanted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// The file or directory, under its own name if the target is a directory.
    Itself,
    /// What is in the directory (`SRC/.`).
    Contents,
}

/// Unpacks a tar with one top entry so that it appears at, or in, `target`.
pub fn unpack(tar: impl Read, what: What, target: &Path) -> Result<(), Failure> {
    let shown = target.display();
    // A link to the target is followed once, here, because it is the caller's own.
    let existing = target.canonicalize().ok();
    let directory = existing.as_deref().filter(|path| path.is_dir());
    if existing
        .as_deref()
        .is_some_and(|path| !path.is_dir() && !path.is_file())
    {
        return Err(usage(format!("'{shown}' is neither a file nor a directory"))
            .hint("write a tar to standard output instead: deltabox cp NAME:SRC -")
            .into());
    }
    if existing.is_none() && target.as_os_str().as_encoded_bytes().ends_with(b"/") {
        return Err(ApiError::new(
            ErrorKind::NotFound,
            format!("the directory '{shown}' does not exist"),
        )
        .into());
    }
    let wanted = existing.clone().unwrap_or_else(|| target.to_owned());
    let beside = directory.unwrap_or_else(|| match wanted.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    });
    let cannot = |error: &io::Error| failed(&format!("cannot copy to '{shown}'"), error);
    let scratch = tempfile::Builder::new()
        .prefix(".deltabox-cp-")
        .tempdir_in(beside)
        .map_err(|error| cannot(&error))?;
    extract(tar, scratch.path()).map_err(|error| cannot(&error))?;
    let top = single_entry(scratch.path()).map_err(|error| cannot(&error))?;
    let placed = match (directory, what, &top) {
        (Some(directory), What::Itself, Some(top)) => {
            merge(top, &directory.join(top.file_name().unwrap_or_default()))
        }
        (Some(directory), _, top) => merge_contents(top.as_deref().unwrap_or(scratch.path()), directory),
        (None, _, Some(top)) => merge(top, &wanted),
        (None, _, None) => fs::create_dir(&wanted).and_then(|()| merge_contents(scratch.path(), &wanted)),
    };
    placed.map_err(|error| cannot(&error))
}

fn failed(what: &str, error: &io::Error) -> Failure {
    let cause = root_cause(error).filter(|cause| !error.to_string().contains(cause.as_str()));
    let cause = cause.map(|cause| format!(": {cause}")).unwrap_or_default();
    let kind = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::Exhausted,
        io::ErrorKind::NotFound => ErrorKind::NotFound,
        io::ErrorKind::AlreadyExists => ErrorKind::Conflict,
        _ => ErrorKind::Internal,
    };
    ApiError::new(kind, format!("{what}: {error}{cause}")).into()
}

/// The innermost error: a tar's error says what was being unpacked, and its cause why that failed.
fn root_cause(error: &io::Error) -> Option<String> {
    let mut cause = error.source()?;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    Some(cause.to_string())
}

fn extract(tar: impl Read, scratch: &Path) -> io::Result<()> {
    let mut archive = tar::Archive::new(tar);
    archive.set_preserve_permissions(false);
    archive.set_preserve_ownerships(false);
    archive.set_preserve_mtime(true);
    // Directories get their permissions and times when nothing is written to them any more.
    let mut directories = Vec::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        match entry.header().entry_type() {
            EntryType::Directory => directories.push(entry),
            EntryType::Regular
            | EntryType::Continuous
            | EntryType::GNUSparse
            | EntryType::Symlink
            | EntryType::Link => {
                if !entry.unpack_in(scratch)? {
                    return Err(io::Error::other(format!(
                        "the archive names '{}'",
                        entry.path()?.display()
                    )));
                }
            }
            EntryType::XGlobalHeader => {}
            _ => {
                left_out(&entry.path()?);
            }
        }
    }
    // Inner directories first: their creation changes the times of the outer ones.
    directories.sort_by_key(|entry| std::cmp::Reverse(entry.path_bytes().into_owned()));
    for mut directory in directories {
        let root = directory
            .path()?
            .components()
            .all(|component| component == Component::CurDir);
        if !root && directory.unpack_in(scratch)? {
            set_modified(&scratch.join(directory.path()?), directory.header().mtime()?)?;
        }
    }
    Ok(())
}

/// Says that something is not copied.
pub fn left_out(path: &Path) {
    // Where standard error is closed, nobody wants to know.
    let _ = writeln!(
        io::stderr(),
        "left out, not a file: {}",
        printable(&path.display().to_string())
    );
}

/// The tar library does this for files only.
fn set_modified(path: &Path, seconds: u64) -> io::Result<()> {
    let time = Timespec {
        tv_sec: i64::try_from(seconds).unwrap_or(0),
        tv_nsec: 0,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    Ok(utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// The one thing that was unpacked; none if it is the root of the sandbox, which has no name.
fn single_entry(scratch: &Path) -> io::Result<Option<PathBuf>> {
    let mut entries = fs::read_dir(scratch)?;
    match (entries.next().transpose()?, entries.next()) {
        (Some(entry), None) => Ok(Some(entry.path())),
        (None, _) => Err(io::Error::other("nothing in it is a file, a directory or a link")),
        (Some(_), Some(_)) => Ok(None),
    }
}

/// Moves `from` to `to`, into a directory that is already there.
fn merge(from: &Path, to: &Path) -> io::Result<()> {
    let there = match fs::symlink_metadata(to) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return fs::rename(from, to),
        Err(error) => return Err(error),
    };
    let directory = fs::symlink_metadata(from)?.is_dir();
    match (directory, there.is_dir()) {
        (false, false) => fs::rename(from, to),
        (true, true) => merge_contents(from, to),
        (true, false) => Err(conflict(to, "is there already and is no directory")),
        (false, true) => Err(conflict(to, "is a directory, and a file should go there")),
    }
}

fn merge_contents(from: &Path, to: &Path) -> io::Result<()> {
    if !from.is_dir() {
        return Err(io::Error::other("the source is not a directory"));
    }
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        merge(&entry.path(), &to.join(entry.file_name()))?;
    }
    Ok(())
}

fn conflict(path: &Path, what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::AlreadyExists,
        format!("'{}' {what}", path.display()),
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    enum Item<'a> {
        Directory,
        File(&'a str, u32),
        Symlink(&'a str),
        HardLink(&'a str),
        Fifo,
    }

    fn tar_of(items: &[(&str, Item<'_>)]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, item) in items {
            let mut header = tar::Header::new_gnu();
            header.set_mtime(1_000_000_000);
            header.set_mode(0o755);
            header.set_size(0);
            let mut data = "";
            match item {
                Item::Directory => header.set_entry_type(EntryType::Directory),
                Item::File(content, mode) => {
                    header.set_entry_type(EntryType::Regular);
                    header.set_mode(*mode);
                    header.set_size(content.len() as u64);
                    data = content;
                }
                Item::Symlink(target) => {
                    header.set_entry_type(EntryType::Symlink);
                    header.set_link_name(target).unwrap();
                }
                Item::HardLink(target) => {
                    header.set_entry_type(EntryType::Link);
                    header.set_link_name(target).unwrap();
                }
                Item::Fifo => header.set_entry_type(EntryType::Fifo),
            }
            // Written as it is, because the library refuses to make hostile archives.
            header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
            header.set_cksum();
            tar.append(&header, data.as_bytes()).unwrap();
        }
        tar.into_inner().unwrap()
    }

    fn unpack_bytes(tar: &[u8], what: What, target: &Path) -> Result<(), Failure> {
        unpack(tar, what, target)
    }

    #[test]
    fn a_file_goes_to_a_new_name_into_a_directory_or_over_a_file() {
        let place = tempfile::tempdir().unwrap();
        let tar = tar_of(&[("hosts", Item::File("one", 0o4644))]);
        unpack_bytes(&tar, What::Itself, &place.path().join("new")).unwrap();
        unpack_bytes(&tar, What::Itself, place.path()).unwrap();
        unpack_bytes(&tar, What::Itself, &place.path().join("hosts")).unwrap();
        for name in ["new", "hosts"] {
            assert_eq!(fs::read_to_string(place.path().join(name)).unwrap(), "one");
            let metadata = fs::metadata(place.path().join(name)).unwrap();
            assert_eq!(
                metadata.permissions().mode() & 0o7777,
                0o644,
                "set-user-id must not come out"
            );
            assert_eq!(metadata.mtime(), 1_000_000_000);
        }
        assert_eq!(
            fs::read_dir(place.path()).unwrap().count(),
            2,
            "nothing else is left behind"
        );
        assert!(unpack_bytes(&tar, What::Itself, &place.path().join("missing/")).is_err());
    }

    #[test]
    fn a_directory_is_merged_and_keeps_links_and_times() {
        let place = tempfile::tempdir().unwrap();
        fs::create_dir(place.path().join("etc")).unwrap();
        fs::write(place.path().join("etc/mine"), "mine").unwrap();
        let tar = tar_of(&[
            ("etc", Item::Directory),
            ("etc/a", Item::File("a", 0o600)),
            ("etc/b", Item::HardLink("etc/a")),
            ("etc/l", Item::Symlink("a")),
            ("etc/sub", Item::Directory),
            ("etc/sub/f", Item::File("f", 0o644)),
            ("etc/pipe", Item::Fifo),
        ]);
        unpack_bytes(&tar, What::Itself, place.path()).unwrap();
        let etc = place.path().join("etc");
        assert_eq!(fs::read_to_string(etc.join("mine")).unwrap(), "mine");
        assert_eq!(
            fs::metadata(etc.join("a")).unwrap().ino(),
            fs::metadata(etc.join("b")).unwrap().ino()
        );
        assert_eq!(fs::read_link(etc.join("l")).unwrap(), Path::new("a"));
        assert_eq!(fs::metadata(etc.join("sub")).unwrap().mtime(), 1_000_000_000);
        assert!(!etc.join("pipe").exists());
        let contents = tempfile::tempdir().unwrap();
        unpack_bytes(&tar, What::Contents, contents.path()).unwrap();
        assert!(contents.path().join("sub/f").exists() && !contents.path().join("etc").exists());
    }

    #[test]
    fn the_root_of_a_sandbox_has_no_name_and_stands_for_its_contents() {
        let place = tempfile::tempdir().unwrap();
        let tar = tar_of(&[
            ("./", Item::Directory),
            ("./a", Item::File("a", 0o644)),
            ("./b", Item::File("b", 0o644)),
        ]);
        unpack_bytes(&tar, What::Itself, &place.path().join("new")).unwrap();
        unpack_bytes(&tar, What::Itself, place.path()).unwrap();
        for name in ["a", "b", "new/a", "new/b"] {
            assert!(place.path().join(name).is_file(), "{name}");
        }
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 3);
    }

    #[test]
    fn hostile_archives_reach_nothing_outside() {
        let place = tempfile::tempdir().unwrap();
        let outside = place.path().join("outside");
        fs::create_dir(&outside).unwrap();
        let target = place.path().join("target");
        fs::create_dir(&target).unwrap();
        let through_link = tar_of(&[
            ("x", Item::Symlink(outside.to_str().unwrap())),
            ("x/planted", Item::File("evil", 0o644)),
        ]);
        assert!(unpack_bytes(&through_link, What::Itself, &target).is_err());
        let upwards = tar_of(&[("../outside/planted", Item::File("evil", 0o644))]);
        assert!(unpack_bytes(&upwards, What::Itself, &target).is_err());
        // A link that is there already is not followed either.
        symlink(&outside, target.join("x")).unwrap();
        let over_link = tar_of(&[("x", Item::Directory), ("x/planted", Item::File("evil", 0o644))]);
        assert!(unpack_bytes(&over_link, What::Itself, &target).is_err());
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        assert_eq!(fs::read_dir(&target).unwrap().count(), 1);
    }

    #[test]
    fn devices_are_not_replaced() {
        let tar = tar_of(&[("f", Item::File("x", 0o644))]);
        assert!(unpack_bytes(&tar, What::Itself, Path::new("/dev/null")).is_err());
        assert!(!Path::new("/dev/null").is_file());
    }
}
