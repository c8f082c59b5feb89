//! Regular files: opened again by path when the root moved; without a name, as an anonymous copy.
//!
//! A file that was deleted while open has no path to be found by and is in no frozen layer. Its content is kept
//! at the checkpoint; a rollback leaves the live one alone when nothing touched it since, and otherwise makes an
//! anonymous file (`O_TMPFILE`): no path is resurrected and nothing of the same name is written to.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::contents::Contents;
use super::error::{Error, making};
use super::live::{Changed, Live, LiveDescription};
use super::place::{Place, reopen};
use super::restore::Environment;
use super::tables::{ContentId, Kind, Tables};
use crate::ids::FirstId;

/// A regular file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    pub place: Place,
    /// Of a file without a name: what it held.
    pub content: Option<ContentId>,
    /// Of a file without a name: how to tell that it was not touched since, and what a copy is to look like.
    pub attributes: Option<Attributes>,
}

/// Attributes of a file without a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    pub changed: Changed,
    pub size: u64,
    pub mode: u32,
    pub owner: (u32, u32),
    /// It never had a name, and `linkat` may give it one.
    pub linkable: bool,
}

pub(super) fn capture(
    live: &Live,
    position: usize,
    previous: Option<&Tables>,
    contents: &mut dyn Contents,
) -> Result<State, Error> {
    let description = &live.descriptions[position];
    let place = Place::of(live, description);
    if !matches!(place, Place::Deleted { .. }) {
        return Ok(State {
            place,
            content: None,
            attributes: None,
        });
    }
    let file = live.pull(position)?;
    let stat = rustix::fs::fstat(file).map_err(making(place.show()))?;
    let attributes = Attributes {
        changed: description.changed,
        size: description.size,
        mode: stat.st_mode & 0o7777,
        owner: (
            live.first_id.inside(stat.st_uid),
            live.first_id.inside(stat.st_gid),
        ),
        linkable: never_named(&place),
    };
    let access = description.access();
    let content = keep(&place, &attributes, access, file, previous, contents)?;
    Ok(State {
        place,
        content: Some(content),
        attributes: Some(attributes),
    })
}

/// What was made by `O_TMPFILE` goes by its inode number. That it was given a name since which was removed again, or
/// that it was made with `O_EXCL`, does not show: such a copy can be given a name although the original could not.
fn never_named(place: &Place) -> bool {
    let Place::Deleted { path, object } = place else {
        return false;
    };
    let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
    name == format!("#{}", object.ino).as_bytes()
}

/// Keeps the content. Times that did not move prove that nothing changed, except by a shared mapping, whose stores
/// they do not follow one by one: where the description allows one to be written, the content is compared.
fn keep(
    place: &Place,
    attributes: &Attributes,
    access: u32,
    file: BorrowedFd<'_>,
    previous: Option<&Tables>,
    contents: &mut dyn Contents,
) -> Result<ContentId, Error> {
    let known = previous.and_then(|tables| {
        tables.descriptions.iter().find_map(|d| match &d.kind {
            Kind::Regular(old) if old.place == *place => Some((old.content?, old.attributes?)),
            _ => None,
        })
    });
    if let Some((content, old)) = known
        && old == *attributes
        && access == libc::O_RDONLY as u32
    {
        return Ok(content);
    }
    let what = || format!("the content of {}", place.show());
    let known = known.map(|(content, _)| content);
    let flags = rustix::fs::fcntl_getfl(file).map_err(making(what()))?;
    if access == libc::O_WRONLY as u32 {
        let readable =
            reopen(file, (libc::O_RDONLY | libc::O_NOATIME) as u32).map_err(making(place.show()))?;
        return contents.keep(readable.as_fd(), known).map_err(making(what()));
    }
    // Not opened again, which is an event for those who watch it.
    rustix::fs::fcntl_setfl(file, flags | OFlags::NOATIME).map_err(making(what()))?;
    let kept = contents.keep(file, known);
    rustix::fs::fcntl_setfl(file, flags).map_err(making(what()))?;
    kept.map_err(making(what()))
}

pub(super) fn same(wanted: &State, live: &Live, description: &LiveDescription) -> bool {
    let fits = wanted
        .place
        .fits(live, description.mount, description.object, description.links);
    match wanted.attributes {
        // Only an untouched file without a name is left as it is.
        Some(attributes) => {
            fits && description.changed == attributes.changed && description.size == attributes.size
        }
        None => fits,
    }
}

/// Opens the file in the tree at `root`, or makes an anonymous copy there.
pub(super) fn make(wanted: &State, flags: u32, environment: &Environment<'_>) -> Result<OwnedFd, Error> {
    let root = environment.root;
    match (wanted.content, wanted.attributes) {
        (Some(content), Some(attributes)) => {
            let file = anonymous(environment, content, &attributes)
                .map_err(making(format!("the open file {}", wanted.place.show())))?;
            Ok(reopen(file.as_fd(), flags).map_err(making(wanted.place.show()))?)
        }
        _ => wanted.place.open(root, flags),
    }
}

fn anonymous(
    environment: &Environment<'_>,
    content: ContentId,
    attributes: &Attributes,
) -> std::io::Result<OwnedFd> {
    let mut flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    if !attributes.linkable {
        flags |= OFlags::EXCL;
    }
    let file = rustix::fs::openat(environment.root, ".", flags, Mode::from_raw_mode(0o600))?;
    environment.contents.put_back(file.as_fd(), content)?;
    set_attributes(file.as_fd(), attributes, environment.first_id)?;
    let (seconds, nanoseconds) = attributes.changed.mtime;
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: i64::from(nanoseconds),
    };
    rustix::fs::futimens(
        &file,
        &Timestamps {
            last_access: time,
            last_modification: time,
        },
    )?;
    Ok(file)
}

fn set_attributes(file: BorrowedFd<'_>, attributes: &Attributes, first: FirstId) -> Result<(), Errno> {
    let owner = Uid::from_raw(first.outside(attributes.owner.0));
    let group = Gid::from_raw(first.outside(attributes.owner.1));
    rustix::fs::fchown(file, Some(owner), Some(group))?;
    rustix::fs::fchmod(file, Mode::from_raw_mode(attributes.mode))
}

/// Whose file it is and who may use it, of one that stays because it is mapped: its content is restored there.
pub(super) fn restore(
    wanted: &State,
    file: BorrowedFd<'_>,
    environment: &Environment<'_>,
) -> Result<(), Error> {
    let Some(attributes) = wanted.attributes else {
        return Ok(());
    };
    set_attributes(file, &attributes, environment.first_id).map_err(making(wanted.place.show()))
}
