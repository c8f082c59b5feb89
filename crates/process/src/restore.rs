//! Making the processes of a stopped sandbox what an image says.

use std::time::Instant;

use rustix::io::Errno;
use thiserror::Error;

use crate::engine::{Engine, Stopped};
use crate::error::TraceError;
use crate::host::Host;
use crate::ids::{Addr, InsidePid};
use crate::image::{Image, ProcessImage, Report};
use crate::inject::{self, Arg, Batch};
use crate::memory::PAGE;
use crate::memory::maps::{self, Backing, Kind, Vma};
use crate::memory::restore::{Change, layout_changes, page_changes};
use crate::stop::{Process, StopError};
use crate::{task, thread};

/// How often the mappings are compared again after having been changed: `brk` and stacks bring their own rules.
const LAYOUT_ROUNDS: usize = 4;

/// Why a restore did not succeed.
#[derive(Debug, Error)]
pub enum RestoreError {
    /// Anything ptrace says.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// The sandbox around the processes did not do its part.
    #[error(transparent)]
    Stop(#[from] StopError),
    /// A mapping could not be made again.
    #[error("cannot {what} {start:#x}-{end:#x} in process {pid}: {errno}")]
    Mapping {
        pid: InsidePid,
        what: &'static str,
        start: u64,
        end: u64,
        errno: Errno,
    },
    /// The mappings did not become what was wanted.
    #[error("the mappings of process {pid} do not become what the checkpoint holds: {detail}")]
    Layout { pid: InsidePid, detail: String },
}

impl<H: Host> Stopped<'_, H> {
    /// Makes the sandbox's processes what `image` says.
    pub fn restore(&mut self, image: &Image) -> Result<(), RestoreError> {
        for wanted in &image.processes {
            let Some(process) = self
                .tree
                .processes
                .iter_mut()
                .find(|process| process.inside() == wanted.pid)
            else {
                continue;
            };
            restore_in_place(self.engine, process, wanted, &mut self.report)?;
        }
        Ok(())
    }
}

/// Makes a live process what `wanted` says.
fn restore_in_place<H: Host>(
    engine: &mut Engine<H>,
    process: &mut Process,
    wanted: &ProcessImage,
    report: &mut Report,
) -> Result<(), RestoreError> {
    let start = Instant::now();
    let tids: Vec<InsidePid> = wanted.threads.iter().map(|thread| thread.tid).collect();
    process.end_threads(&tids)?;
    choose_place(process, &wanted.vmas)?;
    let scanned = engine.scan(process)?;
    report.add("scan", start.elapsed());

    let start = Instant::now();
    let live = engine.live(process)?;
    let remapped = restore_layout(process, scanned.vmas, wanted)?;
    live.tracker.register(&wanted.vmas)?;
    report.add("mappings", start.elapsed());

    let start = Instant::now();
    let changes = page_changes(&wanted.vmas, &wanted.pages, &live.seen, &scanned.runs, &remapped);
    drop_pages(process, &changes.drop)?;
    live.reader.write_pages(&changes.write)?;
    report.bytes_written += changes.write.len() as u64 * PAGE;
    let mut touched: Vec<(u64, u64)> = Vec::new();
    for (at, _) in &changes.write {
        match touched.last_mut() {
            Some((_, end)) if *end == *at => *end += PAGE,
            _ => touched.push((*at, *at + PAGE)),
        }
    }
    live.tracker.protect(&touched)?;
    live.seen = wanted.pages.clone();
    report.add("pages", start.elapsed());

    let start = Instant::now();
    process.create_threads(&mut engine.host, &tids)?;
    task::restore(process, &wanted.task)?;
    for (place, image) in wanted.threads.iter().enumerate() {
        thread::restore(process, place, image)?;
    }
    report.in_place += 1;
    report.add("state", start.elapsed());
    Ok(())
}

/// Keeps the injected memory out of the way of the wanted mappings.
fn choose_place(process: &mut Process, wanted: &[Vma]) -> Result<(), RestoreError> {
    let now = maps::read(process.pid())?;
    let gap = maps::gap(&now, wanted, inject::ROOM).ok_or(RestoreError::Layout {
        pid: process.inside(),
        detail: "there is no free address range to work in".to_owned(),
    })?;
    let (injector, threads) = process.injector();
    if let Some(thread) = threads.first_mut() {
        injector.clear(&mut thread.tracee)?;
    }
    injector.set_place(Addr(gap));
    Ok(())
}

/// Makes the mappings equal. Returns the ranges that were mapped anew.
fn restore_layout(
    process: &mut Process,
    mut now: Vec<Vma>,
    wanted: &ProcessImage,
) -> Result<Vec<(u64, u64)>, RestoreError> {
    let mut remapped = Vec::new();
    for _ in 0..LAYOUT_ROUNDS {
        let changes = layout_changes(&now, &wanted.vmas);
        if changes.is_empty() {
            return Ok(remapped);
        }
        apply_layout(process, &changes, wanted, &mut remapped)?;
        let scratch = process.injector().0.scratch_range();
        now = maps::without(maps::read(process.pid())?, scratch);
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
    remapped: &mut Vec<(u64, u64)>,
) -> Result<(), RestoreError> {
    let mut batch = Batch::new();
    let mut steps = Vec::new();
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
    batch.call(libc::SYS_brk, &[wanted.task.layout.words[5].into()]);
    let mut files: Vec<(Backing, u64)> = Vec::new();
    for change in changes {
        match change {
            Change::Unmap { .. } => {}
            Change::Map(vma) => {
                remapped.push((vma.start, vma.end));
                let step = map(process, &mut batch, vma, &mut files)?;
                steps.push(step);
            }
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
    for (_, fd) in &files {
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
    Ok(())
}

fn map(
    process: &mut Process,
    batch: &mut Batch,
    vma: &Vma,
    files: &mut Vec<(Backing, u64)>,
) -> Result<Step, RestoreError> {
    let range = (vma.start, vma.end);
    let (flags, fd, offset): (i32, Arg, u64) = match &vma.kind {
        Kind::Anonymous => {
            let grows = if vma.label == "[stack]" {
                libc::MAP_GROWSDOWN
            } else {
                0
            };
            (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | grows, (-1).into(), 0)
        }
        Kind::PrivateFile(backing) => (
            libc::MAP_PRIVATE,
            open_inside(process, backing, false, range, files)?.into(),
            backing.offset,
        ),
        Kind::Shared(backing) => (
            libc::MAP_SHARED,
            open_inside(process, backing, true, range, files)?.into(),
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

/// Opens the file behind a mapping inside of the process.
fn open_inside(
    process: &mut Process,
    backing: &Backing,
    write: bool,
    range: (u64, u64),
    files: &mut Vec<(Backing, u64)>,
) -> Result<u64, RestoreError> {
    let same = |other: &Backing| (other.device, other.inode) == (backing.device, backing.inode);
    if let Some((_, fd)) = files.iter().find(|(other, _)| same(other)) {
        return Ok(*fd);
    }
    let mut batch = Batch::new();
    let path = batch.input_str(backing.path.as_bytes());
    let mode = if write { libc::O_RDWR } else { libc::O_RDONLY };
    let open = batch.call(
        libc::SYS_openat,
        &[
            libc::AT_FDCWD.into(),
            path.into(),
            (mode | libc::O_CLOEXEC).into(),
        ],
    );
    process.run(&mut batch)?;
    let (start, end) = range;
    let fd = batch.result(open).map_err(|errno| RestoreError::Mapping {
        pid: process.inside(),
        what: "open the file of",
        start,
        end,
        errno,
    })?;
    files.push((backing.clone(), fd));
    Ok(fd)
}

/// Gives pages back, so that they are what the mapping alone makes them.
fn drop_pages(process: &mut Process, ranges: &[(u64, u64)]) -> Result<(), RestoreError> {
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
