//! Which pages of a process were written since the last look.
//!
//! One userfaultfd per address space, created by the process itself on our behalf and then held by the engine alone.
//! All private mappings are registered with it on every stop; that costs next to nothing for those that are already
//! registered, and a mapping that is new (or was moved, or replaced) comes out of the scan as wholly written, without
//! anybody having to notice that it is new.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use deltabox_sys::pagemap::{self, Filter, Region, category};
use deltabox_sys::uffd;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::PAGE;
use super::maps::{Kind, Vma};
use super::page_store::PageRef;
use super::page_tree::PageTree;
use crate::error::TraceError;
use crate::ids::HostPid;
use crate::inject::Batch;
use crate::procfs;
use crate::stop::Process;

/// Mappings from this size on may be mostly empty (reservations of Go, JVM, V8): protecting what is not there would
/// fill them with page tables (8 bytes for each page).
const LARGE: u64 = 64 << 20;

/// From so many pages on, a second thread helps to put them.
const SHARED_FILL: usize = 1024;

/// Regions taken from the kernel in one call.
const REGIONS: usize = 4096;

/// A run of pages of one private mapping that may differ from what was last seen there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// First address.
    pub start: u64,
    /// Address after the last.
    pub end: u64,
    /// Place of the mapping in the list that was scanned.
    pub vma: usize,
    /// There is private content to be read; otherwise the pages are what the mapping alone makes them: zeros, or the
    /// file.
    pub content: bool,
}

/// Follows the writes into one address space.
pub struct Tracker {
    pid: HostPid,
    uffd: OwnedFd,
    pagemap: File,
    /// Large mappings, by address, that turned out to be well filled.
    dense: HashSet<u64>,
    regions: Vec<Region>,
}

/// How a stretch of mappings is scanned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// One pass that also protects, what is not there included.
    Plain,
    /// Protects only what is there.
    Sparse,
    /// Also finds private copies that were given back (`MADV_DONTNEED`), which leave only a marker behind.
    StoredFile,
}

impl Tracker {
    /// Starts to follow a stopped process. Everything counts as written at first.
    pub fn new(process: &mut Process) -> Result<Tracker, TraceError> {
        let pid = process.pid();
        let request = |source: io::Error| TraceError::Request {
            tid: pid,
            what: "track the memory of",
            source,
        };
        let mut batch = Batch::new();
        let flags = uffd::USER_MODE_ONLY | libc::O_CLOEXEC as u64;
        let created = batch.call(libc::SYS_userfaultfd, &[flags.into()]);
        process.run(&mut batch)?;
        let inner = batch.result(created).map_err(|errno| TraceError::Call {
            pid,
            name: "userfaultfd",
            errno,
        })?;
        let pidfd = pidfd_open(pid.pid(), PidfdFlags::empty()).map_err(|errno| request(errno.into()))?;
        let uffd = i32::try_from(inner)
            .map_err(|_| rustix::io::Errno::BADF)
            .and_then(|inner| pidfd_getfd(&pidfd, inner, PidfdGetfdFlags::empty()));
        let mut batch = Batch::new();
        batch.call(libc::SYS_close, &[inner.into()]);
        process.run(&mut batch)?;
        let uffd = uffd.map_err(|errno| request(errno.into()))?;
        uffd::enable_async_write_protect(&uffd).map_err(request)?;
        let pagemap = File::open(format!("/proc/{pid}/pagemap"))
            .map_err(|source| procfs::failed(pid, "pagemap", source))?;
        Ok(Tracker {
            pid,
            uffd,
            pagemap,
            dense: HashSet::new(),
            regions: vec![Region::default(); REGIONS],
        })
    }

    /// Whether the address space still exists: it is gone after `execve`.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        use std::os::unix::fs::FileExt;
        let mut entry = [0; 8];
        self.pagemap.read_at(&mut entry, 0).is_ok_and(|got| got > 0)
    }

    fn request(&self, source: io::Error) -> TraceError {
        TraceError::Request {
            tid: self.pid,
            what: "track the memory of",
            source,
        }
    }

    /// Registers all private mappings. `EBUSY` means that the program has a userfaultfd of its own; `ESRCH` that the
    /// process has another address space by now (it has called `execve`).
    pub fn register(&self, vmas: &[Vma]) -> Result<(), TraceError> {
        for group in vmas.chunk_by(|one, two| one.is_private() == two.is_private()) {
            let (Some(first), Some(last)) = (group.first(), group.last()) else {
                continue;
            };
            if !first.is_private() {
                continue;
            }
            uffd::register_write_protect(&self.uffd, first.start, last.end - first.start)
                .map_err(|source| self.request(source))?;
        }
        Ok(())
    }

    /// Which pages were written since the last scan, in order. They are protected again on the way, so that the next
    /// scan tells what was written after this one. `stored` is what was last seen.
    pub fn scan(&mut self, vmas: &[Vma], stored: &PageTree) -> Result<Vec<Run>, TraceError> {
        self.dense
            .retain(|start| vmas.iter().any(|vma| vma.start == *start));
        let mut runs = Vec::new();
        let ways: Vec<Option<Way>> = vmas.iter().map(|vma| self.way(vma, stored)).collect();
        let mut place = 0;
        while place < vmas.len() {
            let Some(way) = ways[place] else {
                place += 1;
                continue;
            };
            let mut after = place + 1;
            while way != Way::Sparse && after < vmas.len() && ways[after] == Some(way) {
                after += 1;
            }
            let from = runs.len();
            match way {
                Way::Plain => self.scan_plain(vmas, place..after, &mut runs)?,
                Way::Sparse => self.scan_sparse(vmas, place, &mut runs)?,
                Way::StoredFile => self.scan_stored_file(vmas, place..after, stored, &mut runs)?,
            }
            runs[from..].sort_unstable_by_key(|run| run.start);
            place = after;
        }
        Ok(runs)
    }

    fn way(&self, vma: &Vma, stored: &PageTree) -> Option<Way> {
        match vma.kind {
            Kind::Anonymous if vma.size() >= LARGE && !self.dense.contains(&vma.start) => Some(Way::Sparse),
            Kind::Anonymous => Some(Way::Plain),
            Kind::PrivateFile(_) if stored.any_in(vma.start / PAGE, vma.end / PAGE) => Some(Way::StoredFile),
            Kind::PrivateFile(_) => Some(Way::Plain),
            Kind::Shared(_) | Kind::Kernel(_) => None,
        }
    }

    /// Calls `visit` for each region that passes the filter.
    fn each_region(
        &mut self,
        start: u64,
        end: u64,
        filter: &Filter,
        visit: &mut dyn FnMut(Region),
    ) -> Result<(), TraceError> {
        let mut at = start;
        while at < end {
            let (count, next) =
                pagemap::scan(&self.pagemap, at, end, filter, &mut self.regions).map_err(|source| {
                    TraceError::Request {
                        tid: self.pid,
                        what: "scan the pages of",
                        source,
                    }
                })?;
            self.regions[..count].iter().copied().for_each(&mut *visit);
            at = next;
        }
        Ok(())
    }

    fn scan_plain(
        &mut self,
        vmas: &[Vma],
        places: std::ops::Range<usize>,
        runs: &mut Vec<Run>,
    ) -> Result<(), TraceError> {
        let filter = Filter {
            mask: category::WRITTEN,
            report: category::WRITTEN | category::PRESENT | category::SWAPPED,
            protect: true,
            ..Filter::default()
        };
        let (start, end) = (vmas[places.start].start, vmas[places.end - 1].end);
        let mut found = Vec::new();
        self.each_region(start, end, &filter, &mut |region| {
            split(vmas, places.clone(), region, &mut found)
        })?;
        for (region, vma) in found {
            if has_content(region) && matches!(vmas[vma].kind, Kind::PrivateFile(_)) {
                self.separate_file_pages(region, vma, runs)?;
            } else {
                push(runs, region.start, region.end, vma, has_content(region));
            }
        }
        Ok(())
    }

    /// Of pages that are there in a private mapping of a file, only those that are private copies have content.
    fn separate_file_pages(
        &mut self,
        region: Region,
        vma: usize,
        runs: &mut Vec<Run>,
    ) -> Result<(), TraceError> {
        let filter = Filter {
            any_of: category::PRESENT | category::SWAPPED,
            report: category::FILE,
            ..Filter::default()
        };
        self.each_region(region.start, region.end, &filter, &mut |part| {
            push(
                runs,
                part.start,
                part.end,
                vma,
                part.categories & category::FILE == 0,
            );
        })
    }

    fn scan_sparse(&mut self, vmas: &[Vma], place: usize, runs: &mut Vec<Run>) -> Result<(), TraceError> {
        let report = category::WRITTEN | category::PRESENT | category::SWAPPED;
        let (start, end) = (vmas[place].start, vmas[place].end);
        let present = Filter {
            mask: category::WRITTEN | category::PRESENT,
            report,
            protect: true,
            ..Filter::default()
        };
        self.each_region(start, end, &present, &mut |region| {
            push(runs, region.start, region.end, place, true)
        })?;
        let absent = Filter {
            inverted: category::PRESENT,
            mask: category::WRITTEN | category::PRESENT,
            report,
            ..Filter::default()
        };
        let mut empty = 0;
        let mut swapped = Vec::new();
        self.each_region(start, end, &absent, &mut |region| {
            let content = has_content(region);
            if content {
                swapped.push(region);
            } else {
                empty += region.end - region.start;
            }
            push(runs, region.start, region.end, place, content);
        })?;
        let protect = Filter {
            mask: category::WRITTEN,
            protect: true,
            ..Filter::default()
        };
        for region in swapped {
            self.each_region(region.start, region.end, &protect, &mut |_| {})?;
        }
        if empty < LARGE.max(vmas[place].size() / 8) {
            self.dense.insert(start);
        }
        Ok(())
    }

    fn scan_stored_file(
        &mut self,
        vmas: &[Vma],
        places: std::ops::Range<usize>,
        stored: &PageTree,
        runs: &mut Vec<Run>,
    ) -> Result<(), TraceError> {
        let filter = Filter {
            inverted: category::PRESENT,
            any_of: category::WRITTEN | category::PRESENT,
            report: category::WRITTEN | category::PRESENT | category::SWAPPED | category::FILE,
            protect: true,
            ..Filter::default()
        };
        let (start, end) = (vmas[places.start].start, vmas[places.end - 1].end);
        let mut found = Vec::new();
        self.each_region(start, end, &filter, &mut |region| {
            split(vmas, places.clone(), region, &mut found)
        })?;
        for (region, vma) in found {
            if region.categories & category::WRITTEN != 0 {
                let content = has_content(region) && region.categories & category::FILE == 0;
                push(runs, region.start, region.end, vma, content);
            } else {
                // In swap, or a marker where a private copy was given back: what is stored has to be looked at.
                stored.for_each(region.start / PAGE, region.end / PAGE, &mut |page, _| {
                    push(runs, page * PAGE, (page + 1) * PAGE, vma, true);
                });
            }
        }
        Ok(())
    }

    /// Puts pages into anonymous mappings that hold nothing; they do not count as changed. Returns those that could
    /// not be put: something is there after all (locked memory is filled when it is mapped).
    #[must_use]
    pub fn fill<'a>(&self, pages: &[(u64, &'a PageRef)]) -> Vec<(u64, &'a PageRef)> {
        let put = |pages: &[(u64, &'a PageRef)]| {
            let contents: Vec<_> = pages.iter().map(|(at, page)| (*at, page.bytes())).collect();
            pages[uffd::put_pages(&self.uffd, &contents)..].to_vec()
        };
        if pages.len() < SHARED_FILL {
            return put(pages);
        }
        let (one, two) = pages.split_at(pages.len() / 2);
        std::thread::scope(|scope| {
            let one = scope.spawn(|| put(one));
            let mut left = put(two);
            left.extend(
                one.join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            );
            left
        })
    }

    /// Protects pages that the engine itself has written, so that they do not count as changed.
    pub fn protect(&mut self, ranges: &[(u64, u64)]) -> Result<(), TraceError> {
        let filter = Filter {
            mask: category::WRITTEN | category::PRESENT,
            report: category::WRITTEN,
            protect: true,
            ..Filter::default()
        };
        for &(start, end) in ranges {
            self.each_region(start, end, &filter, &mut |_| {})?;
        }
        Ok(())
    }
}

fn has_content(region: Region) -> bool {
    region.categories & (category::PRESENT | category::SWAPPED) != 0
}

/// Adds a run, joining it to the last one where possible.
fn push(runs: &mut Vec<Run>, start: u64, end: u64, vma: usize, content: bool) {
    match runs.last_mut() {
        Some(last) if last.end == start && last.vma == vma && last.content == content => last.end = end,
        _ => runs.push(Run {
            start,
            end,
            vma,
            content,
        }),
    }
}

/// Cuts a region at the borders of the mappings it covers.
fn split(vmas: &[Vma], places: std::ops::Range<usize>, region: Region, found: &mut Vec<(Region, usize)>) {
    let first = places.start + vmas[places.clone()].partition_point(|vma| vma.end <= region.start);
    for (place, vma) in vmas.iter().enumerate().take(places.end).skip(first) {
        if vma.start >= region.end {
            break;
        }
        let part = Region {
            start: region.start.max(vma.start),
            end: region.end.min(vma.end),
            ..region
        };
        found.push((part, place));
    }
}
