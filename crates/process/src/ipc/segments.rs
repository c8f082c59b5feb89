//! System V shared memory. A segment is the same object whether somebody has it attached or not; its content is kept
//! like that of all shared memory.

use std::collections::HashMap;
use std::fs::File;
use std::io;

use deltabox_sys::sysvipc::{self, Attached};
use rustix::fs::fstatfs;
use serde::{Deserialize, Serialize};

use super::namespace::{Kind, Namespace, make_with_id};
use super::{Permissions, failed, names};
use crate::error::TraceError;
use crate::ids::{FirstId, InsidePid};
use crate::inject::Batch;
use crate::memory::PAGE;
use crate::memory::maps::{self, Vma};
use crate::shared::{self, Key};
use crate::stop::Tree;
use crate::survey::Refusal;

/// `SHM_DEST` and `SHM_LOCKED` (include/uapi/linux/shm.h).
const REMOVED: u32 = 0o1000;
const LOCKED: u32 = 0o2000;

/// `HUGETLBFS_MAGIC` (include/uapi/linux/magic.h).
const HUGETLBFS: u64 = 0x9584_58f6;

/// One segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    pub id: i32,
    pub permissions: Permissions,
    pub size: u64,
    /// It is kept in memory (`SHM_LOCK`).
    pub locked: bool,
    /// It goes once nobody has it attached any more.
    pub removed: bool,
}

/// A segment, and how it is used.
struct Now {
    segment: Segment,
    attached: u64,
    creator: i32,
}

pub(super) fn key(id: i32) -> Key {
    (shared::SEGMENTS, u64::from(id.cast_unsigned()))
}

fn read_all(ids: &[i32], first: FirstId) -> io::Result<Vec<Now>> {
    let one = |&id: &i32| {
        let now = sysvipc::segment(id)?;
        let segment = Segment {
            id,
            permissions: Permissions::of(&now.permissions, first),
            size: now.size,
            locked: now.permissions.mode & LOCKED != 0,
            removed: now.permissions.mode & REMOVED != 0,
        };
        Ok(Now {
            segment,
            attached: now.attached,
            creator: now.creator,
        })
    };
    ids.iter().map(one).collect()
}

/// A segment as a file. It is attached for a moment; the file then does without.
fn open(id: i32, size: u64) -> io::Result<File> {
    let attached = Attached::new(id)?;
    let start = attached.address();
    let end = start + size.next_multiple_of(PAGE);
    let path = format!("/proc/self/map_files/{start:x}-{end:x}");
    File::options().read(true).write(true).open(path)
}

/// Opens those that nobody has attached and that are not known yet: only then the kernel notes a use.
pub(super) fn survey(
    namespace: &Namespace,
    ids: &[i32],
    first: FirstId,
    detached: &mut HashMap<i32, File>,
    tree: &mut Tree,
    refusals: &mut Vec<Refusal>,
) -> Result<Vec<Segment>, TraceError> {
    let known = &*detached;
    let (found, opened) = namespace
        .enter(|| {
            let found = read_all(ids, first)?;
            let unused = found.iter().filter(|now| now.attached == 0);
            let new = unused.filter(|now| !known.contains_key(&now.segment.id));
            let opened = new.map(|now| Ok((now.segment.id, open(now.segment.id, now.segment.size)?)));
            let opened = opened.collect::<io::Result<Vec<_>>>()?;
            Ok((found, opened))
        })
        .map_err(failed("read System V shared memory"))?;
    detached.extend(opened);
    detached.retain(|id, _| found.iter().any(|now| now.segment.id == *id && now.attached == 0));
    let names = names(tree);
    for now in &found {
        let id = now.segment.id;
        let Some(file) = detached.get(&id) else { continue };
        if is_huge(file).map_err(failed("look at System V shared memory"))? {
            let creator = names.get(&now.creator).copied().unwrap_or(InsidePid(0));
            refusals.push(refuse_huge(tree, creator, id));
        }
    }
    for place in 0..tree.processes.len() {
        let process = &mut tree.processes[place];
        let (pid, inside) = (process.pid(), process.inside());
        let named = |vma: &&Vma| shared::is_named_like_segment(vma) && !shared::is_segment(vma);
        let huge = process.look_at_maps()?.iter().filter(named).find_map(|vma| {
            let file = shared::open_mapping(pid, vma, false).ok()?;
            let inode = shared::key_of(vma)?.1;
            is_huge(&file).ok()?.then_some(inode)
        });
        if let Some(id) = huge {
            refusals.push(refuse_huge(tree, inside, i32::try_from(id).unwrap_or(-1)));
        }
    }
    Ok(found.into_iter().map(|now| now.segment).collect())
}

fn is_huge(file: &File) -> io::Result<bool> {
    Ok(fstatfs(file)?.f_type as u64 == HUGETLBFS)
}

fn refuse_huge(tree: &mut Tree, pid: InsidePid, id: i32) -> Refusal {
    let name = tree
        .by_inside(pid)
        .map_or_else(String::new, |process| process.name().to_owned());
    Refusal {
        pid,
        name,
        what: format!("System V shared memory segment {id}"),
        why: "huge pages of hugetlbfs cannot be carried".to_owned(),
        remedy: "make it without SHM_HUGETLB".to_owned(),
    }
}

impl Segment {
    /// Whether a live segment can be made what this one was. That it was removed cannot be taken back.
    fn can_be(&self, now: &Segment) -> bool {
        let same =
            (self.id, self.size, self.permissions.creator) == (now.id, now.size, now.permissions.creator);
        same && match (self.removed, now.removed) {
            (false, true) => false,
            (false, false) => self.permissions.key == now.permissions.key,
            (true, _) => true,
        }
    }
}

pub(super) fn restore(
    namespace: &Namespace,
    first: FirstId,
    tree: &mut Tree,
    wanted: &[Segment],
) -> Result<HashMap<Key, File>, TraceError> {
    let restoring = || failed("restore System V shared memory");
    let ids = namespace.ids(Kind::Shm).map_err(restoring())?;
    if ids.is_empty() && wanted.is_empty() {
        return Ok(HashMap::new());
    }
    let live = namespace.enter(|| read_all(&ids, first)).map_err(restoring())?;
    let kept = |segment: &Segment| live.iter().find(|now| segment.can_be(&now.segment));
    let outdated = live.iter().map(|now| &now.segment);
    let outdated = outdated.filter(|now| !wanted.iter().any(|segment| segment.can_be(now)));
    let outdated: Vec<i32> = outdated.map(|now| now.id).collect();
    // Its id is free again only when the last one has let go of it.
    detach(tree, &outdated)?;
    let remove = |id: &i32| match sysvipc::remove_segment(*id) {
        Err(e) if e.raw_os_error() != Some(libc::EINVAL) => Err(e),
        _ => Ok(()),
    };
    let make = |segment: &Segment| {
        let permissions = &segment.permissions;
        make_with_id(Kind::Shm, segment.id, permissions, first, || {
            sysvipc::make_segment(permissions.key, segment.size)
        })
    };
    namespace
        .enter(|| {
            outdated.iter().try_for_each(remove)?;
            let mut files = HashMap::new();
            for segment in wanted {
                let now = kept(segment);
                if now.is_none() {
                    make(segment)?;
                }
                // Those who attach it may have lost the right to do so since, or not have it yet.
                sysvipc::change_segment(segment.id, &segment.permissions.open(first))?;
                if now.is_none_or(|now| now.attached == 0) {
                    files.insert(key(segment.id), open(segment.id, segment.size)?);
                }
            }
            Ok(files)
        })
        .map_err(restoring())
}

/// Has all processes let go of these segments.
fn detach(tree: &mut Tree, ids: &[i32]) -> Result<(), TraceError> {
    if ids.is_empty() {
        return Ok(());
    }
    let wanted = |vma: &Vma| {
        let id = shared::key_of(vma).and_then(|(_, inode)| i32::try_from(inode).ok());
        shared::is_segment(vma) && id.is_some_and(|id| ids.contains(&id))
    };
    for process in &mut tree.processes {
        let mut batch = Batch::new();
        for vma in maps::read(process.pid())?.iter().filter(|vma| wanted(vma)) {
            batch.call(libc::SYS_munmap, &[vma.start.into(), vma.size().into()]);
        }
        if batch.is_empty() {
            continue;
        }
        process.run(&mut batch)?;
        if let Some((_, errno)) = batch.first_error() {
            let pid = process.pid();
            return Err(TraceError::Call {
                pid,
                name: "munmap",
                errno,
            });
        }
        process.forget_maps();
    }
    Ok(())
}

/// Sets owners and modes, and marks for removal what was, now that everybody has it attached.
pub(super) fn finish(namespace: &Namespace, first: FirstId, wanted: &[Segment]) -> Result<(), TraceError> {
    if wanted.is_empty() {
        return Ok(());
    }
    let ids: Vec<i32> = wanted.iter().map(|segment| segment.id).collect();
    let work = || {
        for (now, segment) in read_all(&ids, first)?.iter().zip(wanted) {
            let now = &now.segment;
            let (has, wants) = (&now.permissions, &segment.permissions);
            if (has.owner, has.mode) != (wants.owner, wants.mode) {
                sysvipc::change_segment(segment.id, &wants.raw(first))?;
            }
            if now.locked != segment.locked {
                sysvipc::lock_segment(segment.id, segment.locked)?;
            }
            if segment.removed && !now.removed {
                sysvipc::remove_segment(segment.id)?;
            }
        }
        Ok(())
    };
    namespace
        .enter(work)
        .map_err(failed("restore System V shared memory"))
}
