//! Making the mappings of a process what an image says, by calls injected into it.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};

use deltabox_sys::vmas::flag;

use rustix::io::Errno;

use crate::error::TraceError;
use crate::ids::Addr;
use crate::image::ProcessImage;
use crate::inject::{self, Arg, Batch, pass};
use crate::ipc::{self, Attachment};
use crate::memory::PAGE;
use crate::memory::maps::{self, Backing, Kind, Vma};
use crate::memory::restore::{Change, layout_changes};
use crate::memory::roots::Roots;
use crate::procfs;
use crate::restore::RestoreError;
use crate::shared::{self, Key, SharedMemory};
use crate::stop::Process;

/// How often the mappings are compared again after having been changed: `brk` and stacks bring their own rules.
const LAYOUT_ROUNDS: usize = 4;

/// Where mappings get their files from, and how those that are there are named.
pub struct Sources<'a> {
    /// The mounts that have been the root.
    pub roots: &'a Roots,
    /// Shared memory.
    pub shared: &'a SharedMemory,
    /// Open files of shared memory.
    pub files: &'a HashMap<Key, File>,
}

impl Sources<'_> {
    /// The mappings with their files named as in an image.
    pub fn normalize(&self, vmas: Vec<Vma>) -> Vec<Vma> {
        self.shared.normalize(self.roots, vmas)
    }
}

/// Moves the vDSO and its data to where the image has them; the kernel follows.
pub fn move_kernel_mappings(process: &mut Process, wanted: &[Vma]) -> Result<(), RestoreError> {
    let now = maps::read(process.pid())?;
    let kernel = |vmas: &[Vma]| -> Vec<Vma> {
        vmas.iter()
            .filter(|vma| matches!(vma.kind, Kind::Kernel(_)))
            .cloned()
            .collect()
    };
    let (now, wanted) = (kernel(&now), kernel(wanted));
    let same = now.len() == wanted.len()
        && now
            .iter()
            .zip(&wanted)
            .all(|(one, two)| one.kind == two.kind && one.size() == two.size());
    if !same {
        let detail =
            "the kernel's own mappings (vDSO) are not those of the checkpoint: it was made by another kernel";
        return Err(RestoreError::Layout {
            pid: process.inside(),
            detail: detail.to_owned(),
        });
    }
    let (Some(from), Some(to)) = (now.first(), wanted.first()) else {
        return Ok(());
    };
    if from.start == to.start {
        return Ok(());
    }
    let end = |vmas: &[Vma]| vmas.last().map_or(0, |vma| vma.end);
    let overlap = from.start < end(&wanted) && to.start < end(&now);
    let mut stations = vec![to.start];
    if overlap {
        let size = end(&now) - from.start + 2 * PAGE;
        let free = maps::gap(&maps::read(process.pid())?, &wanted, size).unwrap_or(to.start);
        stations.insert(0, free);
    }
    let mut at = from.start;
    for station in stations {
        move_all(process, &now, at, station)?;
        at = station;
    }
    let offset = process.injector().0.instruction().0.wrapping_sub(from.start);
    process
        .injector()
        .0
        .set_instruction(Addr(to.start.wrapping_add(offset)));
    Ok(())
}

/// Moves neighbouring mappings, the first of which is at `at`, to `station`, by code that is in none of them.
fn move_all(process: &mut Process, vmas: &[Vma], at: u64, station: u64) -> Result<(), RestoreError> {
    let Some(first) = vmas.first() else { return Ok(()) };
    let mut batch = Batch::new().stop_on_error();
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    for vma in vmas {
        let offset = vma.start - first.start;
        let (from, to) = (at + offset, station + offset);
        let args: [Arg; 5] = [
            from.into(),
            vma.size().into(),
            vma.size().into(),
            flags.into(),
            to.into(),
        ];
        batch.call(libc::SYS_mremap, &args);
    }
    process.run(&mut batch)?;
    match batch.first_error() {
        None => Ok(()),
        Some((place, errno)) => Err(RestoreError::Mapping {
            pid: process.inside(),
            what: "move the kernel's mapping at",
            start: vmas[place].start,
            end: vmas[place].end,
            errno,
        }),
    }
}

/// Makes the mappings equal. Returns the ranges that were mapped anew.
pub fn restore(
    process: &mut Process,
    mut now: Vec<Vma>,
    wanted: &ProcessImage,
    fresh: bool,
    sources: &Sources<'_>,
) -> Result<Vec<(u64, u64)>, RestoreError> {
    let mut remapped = Vec::new();
    let mut set_up = !fresh;
    for _ in 0..LAYOUT_ROUNDS {
        let changes = layout_changes(&now, &wanted.vmas);
        if changes.is_empty() {
            return Ok(remapped);
        }
        apply_layout(process, &changes, wanted, set_up, sources, &mut remapped)?;
        if !set_up {
            describe(process, wanted)?;
            set_up = true;
        }
        let scratch = process.injector().0.scratch_range();
        now = sources.normalize(maps::without(maps::read(process.pid())?, scratch));
    }
    let left = layout_changes(&now, &wanted.vmas);
    if left.is_empty() {
        return Ok(remapped);
    }
    Err(RestoreError::Layout {
        pid: wanted.pid,
        detail: format!("{left:x?}"),
    })
}

/// Tells the kernel where the program's parts are (`PR_SET_MM_MAP`, prctl(2)): what `brk` and `/proc` go by.
fn describe(process: &mut Process, wanted: &ProcessImage) -> Result<(), RestoreError> {
    const PR_SET_MM: i32 = 35;
    const PR_SET_MM_MAP: i32 = 14;
    let mut batch = Batch::new();
    let auxv = batch.input(&wanted.auxv);
    let mut map: Vec<u8> = wanted
        .task
        .layout
        .words
        .iter()
        .flat_map(|word| word.to_ne_bytes())
        .collect();
    let auxv_at = map.len() as u64;
    map.extend_from_slice(&[0; 8]);
    map.extend_from_slice(&u32::try_from(wanted.auxv.len()).unwrap_or(0).to_ne_bytes());
    // No change of the executable: it has been started.
    map.extend_from_slice(&u32::MAX.to_ne_bytes());
    let map = batch.input(&map);
    batch.link(map, auxv_at, auxv);
    let args: [Arg; 5] = [
        PR_SET_MM.into(),
        PR_SET_MM_MAP.into(),
        map.into(),
        map.length().into(),
        0.into(),
    ];
    let call = batch.call(libc::SYS_prctl, &args);
    process.run(&mut batch)?;
    let pid = process.pid();
    batch.result(call).map_err(|errno| TraceError::Call {
        pid,
        name: "prctl(PR_SET_MM_MAP)",
        errno,
    })?;
    Ok(())
}

/// One call of a layout change, to tell what went wrong.
struct Step {
    call: inject::CallId,
    what: &'static str,
    range: (u64, u64),
}

fn apply_layout(
    process: &mut Process,
    changes: &[Change],
    wanted: &ProcessImage,
    set_up: bool,
    sources: &Sources<'_>,
    remapped: &mut Vec<(u64, u64)>,
) -> Result<(), RestoreError> {
    let mut batch = Batch::new();
    let mut steps = Vec::new();
    if set_up {
        // Before anything is unmapped: the kernel does not shrink a heap that is not there any more.
        batch.call(libc::SYS_brk, &[wanted.task.layout.words[5].into()]);
    }
    for change in changes {
        if let Change::Unmap { start, end } = change {
            let call = batch.call(libc::SYS_munmap, &[(*start).into(), (end - start).into()]);
            steps.push(Step {
                call,
                what: "unmap",
                range: (*start, *end),
            });
        }
    }
    if set_up {
        // And after: to grow, it needs the room.
        batch.call(libc::SYS_brk, &[wanted.task.layout.words[5].into()]);
    }
    let mut files: Vec<(Backing, bool, u64)> = Vec::new();
    for change in changes {
        match change {
            Change::Unmap { .. } => {}
            Change::Map(vma) => {
                remapped.push((vma.start, vma.end));
                if ipc::segment_of(vma).is_some() {
                    continue;
                }
                let step = map(process, &mut batch, vma, sources, &mut files)?;
                steps.push(step);
                advise(&mut batch, (vma.start, vma.end), 0, vma.flags, &mut steps);
            }
            Change::Advise {
                start,
                end,
                now,
                wanted,
            } => advise(&mut batch, (*start, *end), *now, *wanted, &mut steps),
            Change::Protect {
                start,
                end,
                protection,
            } => {
                let args: [Arg; 3] = [
                    (*start).into(),
                    (end - start).into(),
                    u32::from(*protection).into(),
                ];
                let call = batch.call(libc::SYS_mprotect, &args);
                steps.push(Step {
                    call,
                    what: "protect",
                    range: (*start, *end),
                });
            }
            Change::Label { start, end, label } => {
                const PR_SET_VMA: i32 = 0x5356_4d41;
                let name = label
                    .strip_prefix("[anon:")
                    .and_then(|name| name.strip_suffix(']'));
                let name: Arg = match name {
                    Some(name) => batch.input_str(name.as_bytes()).into(),
                    None => 0.into(),
                };
                let args = [
                    PR_SET_VMA.into(),
                    0.into(),
                    (*start).into(),
                    (end - start).into(),
                    name,
                ];
                let call = batch.call(libc::SYS_prctl, &args);
                steps.push(Step {
                    call,
                    what: "name",
                    range: (*start, *end),
                });
            }
        }
    }
    for (_, _, fd) in &files {
        batch.call(libc::SYS_close, &[(*fd).into()]);
    }
    process.run(&mut batch)?;
    for step in steps {
        if let Err(errno) = batch.result(step.call) {
            let (start, end) = step.range;
            return Err(RestoreError::Mapping {
                pid: wanted.pid,
                what: step.what,
                start,
                end,
                errno,
            });
        }
    }
    attach_segments(process, changes, wanted, sources)
}

/// Maps what has to count as attached.
fn attach_segments(
    process: &mut Process,
    changes: &[Change],
    wanted: &ProcessImage,
    sources: &Sources<'_>,
) -> Result<(), RestoreError> {
    let mut made: Vec<Attachment<'_>> = Vec::new();
    for change in changes {
        let Change::Map(vma) = change else { continue };
        if made.iter().any(|attachment| attachment.is_of(vma)) {
            continue;
        }
        let Some(attachment) = Attachment::around(vma, &wanted.vmas) else {
            continue;
        };
        let file = shared::key_of(vma).and_then(|key| sources.files.get(&key));
        let metadata = file.map(File::metadata).transpose();
        let size = metadata.map_err(|source| procfs::failed(process.pid(), "map_files", source))?;
        attachment.make(process, size.map_or(0, |it| it.len()), &wanted.vmas)?;
        made.push(attachment);
    }
    Ok(())
}

/// Gives the advice that turns the flags `now` into `wanted`.
fn advise(batch: &mut Batch, range: (u64, u64), now: u16, wanted: u16, steps: &mut Vec<Step>) {
    /// Flag, advice that sets it, advice that clears it.
    const PAIRS: [(u16, i32, i32); 4] = [
        (flag::DONT_FORK, libc::MADV_DONTFORK, libc::MADV_DOFORK),
        (flag::WIPE_ON_FORK, libc::MADV_WIPEONFORK, libc::MADV_KEEPONFORK),
        (flag::DONT_DUMP, libc::MADV_DONTDUMP, libc::MADV_DODUMP),
        (flag::MERGEABLE, libc::MADV_MERGEABLE, libc::MADV_UNMERGEABLE),
    ];
    /// The same where one flag clears the other.
    const SETS: [(u16, i32); 4] = [
        (flag::HUGE_PAGE, libc::MADV_HUGEPAGE),
        (flag::NO_HUGE_PAGE, libc::MADV_NOHUGEPAGE),
        (flag::SEQUENTIAL, libc::MADV_SEQUENTIAL),
        (flag::RANDOM, libc::MADV_RANDOM),
    ];
    const ORDER: u16 = flag::SEQUENTIAL | flag::RANDOM;
    let differs = now ^ wanted;
    let pairs = PAIRS.into_iter().filter(|(flag, _, _)| differs & flag != 0);
    let pairs = pairs.map(|(flag, set, clear)| if wanted & flag != 0 { set } else { clear });
    let sets = SETS.into_iter().filter(|(flag, _)| differs & wanted & flag != 0);
    let normal = (differs & ORDER != 0 && wanted & ORDER == 0).then_some(libc::MADV_NORMAL);
    for advice in pairs.chain(sets.map(|(_, set)| set)).chain(normal) {
        let args = [range.0.into(), (range.1 - range.0).into(), advice.into()];
        steps.push(Step {
            call: batch.call(libc::SYS_madvise, &args),
            what: "advise about",
            range,
        });
    }
}

fn map(
    process: &mut Process,
    batch: &mut Batch,
    vma: &Vma,
    sources: &Sources<'_>,
    files: &mut Vec<(Backing, bool, u64)>,
) -> Result<Step, RestoreError> {
    let range = (vma.start, vma.end);
    let (flags, fd, offset): (i32, Arg, u64) = match &vma.kind {
        Kind::Anonymous => {
            let grows = if vma.has(flag::GROWS_DOWN) {
                libc::MAP_GROWSDOWN
            } else {
                0
            };
            (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | grows, (-1).into(), 0)
        }
        Kind::PrivateFile(backing) => (
            libc::MAP_PRIVATE,
            open_inside(process, backing, false, range, sources, files)?.into(),
            backing.offset,
        ),
        Kind::Shared(backing) => (
            libc::MAP_SHARED,
            open_inside(
                process,
                backing,
                !vma.has(flag::NEVER_WRITABLE),
                range,
                sources,
                files,
            )?
            .into(),
            backing.offset,
        ),
        Kind::Kernel(name) => {
            let detail = format!("{name} has been moved or unmapped");
            return Err(RestoreError::Layout {
                pid: process.inside(),
                detail,
            });
        }
    };
    let flags = flags | libc::MAP_FIXED;
    let args: [Arg; 6] = [
        vma.start.into(),
        vma.size().into(),
        u32::from(vma.protection).into(),
        flags.into(),
        fd,
        offset.into(),
    ];
    Ok(Step {
        call: batch.call(libc::SYS_mmap, &args),
        what: "map",
        range,
    })
}

/// Opens the file behind a mapping inside of the process. Opened for writing, a shared mapping of it can be made
/// writable, so it is opened for exactly what it was: the program would see the difference.
fn open_inside(
    process: &mut Process,
    backing: &Backing,
    write: bool,
    range: (u64, u64),
    sources: &Sources<'_>,
    files: &mut Vec<(Backing, bool, u64)>,
) -> Result<u64, RestoreError> {
    let same = |other: &Backing, mode: bool| {
        (other.device, other.inode, mode) == (backing.device, backing.inode, write)
    };
    if let Some((_, _, fd)) = files.iter().find(|(other, mode, _)| same(other, *mode)) {
        return Ok(*fd);
    }
    let (start, end) = range;
    let failed = |pid, errno| RestoreError::Mapping {
        pid,
        what: "open the file of",
        start,
        end,
        errno,
    };
    if let Some(file) = sources.files.get(&(backing.device, backing.inode)) {
        let fd = if write {
            pass(process, file.as_fd())?
        } else {
            let for_reading = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()));
            let for_reading = for_reading.map_err(|error| {
                let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
                failed(process.inside(), errno)
            })?;
            pass(process, for_reading.as_fd())?
        };
        files.push((backing.clone(), write, fd));
        return Ok(fd);
    }
    let mut batch = Batch::new();
    let path = batch.input_str(backing.path.as_bytes());
    let mode = if write { libc::O_RDWR } else { libc::O_RDONLY };
    let opened = batch.call(
        libc::SYS_openat,
        &[
            libc::AT_FDCWD.into(),
            path.into(),
            (mode | libc::O_CLOEXEC).into(),
        ],
    );
    process.run(&mut batch)?;
    let fd = batch
        .result(opened)
        .map_err(|errno| failed(process.inside(), errno))?;
    files.push((backing.clone(), write, fd));
    Ok(fd)
}

/// Gives pages back, so that they are what the mapping alone makes them.
pub fn drop_pages(process: &mut Process, ranges: &[(u64, u64)]) -> Result<(), RestoreError> {
    /// `MADV_DONTNEED_LOCKED` (kernel 5.18): also where `mlock` holds the pages.
    const MADV_DONTNEED_LOCKED: i32 = 24;
    let mut batch = Batch::new();
    let calls: Vec<_> = ranges
        .iter()
        .map(|&(start, end)| {
            batch.call(
                libc::SYS_madvise,
                &[start.into(), (end - start).into(), MADV_DONTNEED_LOCKED.into()],
            )
        })
        .collect();
    process.run(&mut batch)?;
    for (call, &(start, end)) in calls.into_iter().zip(ranges) {
        if let Err(errno) = batch.result(call) {
            let pid = process.inside();
            return Err(RestoreError::Mapping {
                pid,
                what: "empty",
                start,
                end,
                errno,
            });
        }
    }
    Ok(())
}
