//! Memory tracking, and how much there is.

use std::fs::{self, File};
use std::path::Path;

use deltabox_sys::pagemap::{self, Filter, Region, category};
use deltabox_sys::uffd;
use deltabox_sys::vmas;

use super::{Doing, Step, all, ensure};
use crate::report::Outcome;

const PAGE: u64 = 4096;
const HUGE: u64 = 2 << 20;
const MEMORY_WANTED_MB: u64 = 2048;

/// The one check that is about a number.
pub(crate) fn kernel(_: &Path) -> Outcome {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map(|n| n.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= (6, 7) {
        Outcome::works(release)
    } else {
        Outcome::missing(format!("this is {release}"))
    }
}

/// Memory of this process, page-aligned inside.
struct Area {
    memory: Vec<u8>,
    offset: usize,
    start: u64,
    end: u64,
}

impl Area {
    fn new(length: u64, align: u64) -> Self {
        let memory = vec![0u8; (length + align) as usize];
        let address = memory.as_ptr() as u64;
        let start = address.next_multiple_of(align);
        Area {
            memory,
            offset: (start - address) as usize,
            start,
            end: start + length,
        }
    }

    fn touch(&mut self, page: u64, value: u8) {
        self.memory[self.offset + (page * PAGE) as usize] = value;
    }
}

fn tracked(area: &Area) -> Step<std::os::fd::OwnedFd> {
    let fd = uffd::create().doing("create a userfaultfd")?;
    uffd::enable_async_write_protect(&fd).doing("enable WP_ASYNC and WP_UNPOPULATED")?;
    uffd::register_write_protect(&fd, area.start, area.end - area.start).doing("register memory")?;
    Ok(fd)
}

/// Registered memory is written without anybody answering the faults.
pub(crate) fn userfaultfd(_: &Path) -> Outcome {
    all((|| {
        let mut area = Area::new(16 * PAGE, PAGE);
        let _fd = tracked(&area)?;
        for page in 0..16 {
            area.touch(page, 1);
        }
        Ok("created for user faults only, with WP_ASYNC and WP_UNPOPULATED".into())
    })())
}

/// Exactly the pages written since the last scan are reported; a read by the kernel into memory counts.
pub(crate) fn pagemap_scan(_: &Path) -> Outcome {
    all((|| {
        let mut area = Area::new(32 * PAGE, PAGE);
        let _fd = tracked(&area)?;
        let map = File::open("/proc/self/pagemap").doing("open pagemap")?;
        let filter = Filter {
            mask: category::WRITTEN,
            report: category::WRITTEN,
            protect: true,
            ..Filter::default()
        };
        let (start, end) = (area.start, area.end);
        let mut found = [Region::default(); 8];
        let mut scan = || -> Step<Vec<u64>> {
            let (n, _) = pagemap::scan(&map, start, end, &filter, &mut found).doing("scan and protect")?;
            Ok(found[..n].iter().map(|r| (r.start - start) / PAGE).collect())
        };
        scan()?;
        ensure(scan()?.is_empty(), "pages are reported that were not written")?;
        area.touch(5, 1);
        let at = area.offset + 9 * PAGE as usize;
        let zero = File::open("/dev/zero").doing("open /dev/zero")?;
        rustix::io::read(&zero, &mut area.memory[at..at + 1]).doing("read into protected memory")?;
        let pages = scan()?;
        ensure(
            pages == [5, 9],
            &format!("pages 5 and 9 were written, {pages:?} were reported"),
        )?;
        Ok("exactly the written pages were reported and protected again".into())
    })())
}

/// The mappings of this process are told, and those that grow downwards (the stack) from others.
pub(crate) fn mapping_flags(_: &Path) -> Outcome {
    all((|| {
        let reader = vmas::Reader::new().doing("load the program and learn what the flags mean")?;
        let found = reader.read(rustix::process::getpid()).doing("read the flags")?;
        let growing = found.iter().filter(|vma| vma.flags & vmas::flag::GROWS_DOWN != 0);
        ensure(growing.count() == 1, "not exactly one mapping is the stack")?;
        Ok(format!("the flags of {} mappings were read", found.len()))
    })())
}

/// Asks for a huge page and looks whether one came.
pub(crate) fn huge_pages(_: &Path) -> Outcome {
    let mode = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    let mode = mode.split(['[', ']']).nth(1).unwrap_or("not built in").to_owned();
    let came = || -> Step<bool> {
        let mut area = Area::new(2 * HUGE, HUGE);
        let (from, to) = (area.offset, area.offset + 2 * HUGE as usize);
        pagemap::advise_huge(&mut area.memory[from..to]).doing("ask for huge pages")?;
        area.memory[from..to].fill(1);
        let map = File::open("/proc/self/pagemap").doing("open pagemap")?;
        let filter = Filter {
            mask: category::HUGE,
            report: category::HUGE,
            ..Filter::default()
        };
        let mut found = [Region::default(); 4];
        Ok(pagemap::scan(&map, area.start, area.end, &filter, &mut found)
            .doing("scan")?
            .0
            > 0)
    };
    match came() {
        Ok(true) => Outcome::works(format!("huge pages came when asked for (mode: {mode})")),
        Ok(false) => Outcome::degraded(format!(
            "no huge page came (mode: {mode}); memory may be fragmented"
        )),
        Err(why) => Outcome::missing(format!("{why} (mode: {mode})")),
    }
}

pub(crate) fn available(_: &Path) -> Outcome {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kb = text.lines().find_map(|l| {
        l.strip_prefix("MemAvailable:")?
            .split_whitespace()
            .next()?
            .parse::<u64>()
            .ok()
    });
    match kb.map(|kb| kb / 1024) {
        Some(mb) if mb >= MEMORY_WANTED_MB => Outcome::works(format!("{mb} MB are available")),
        Some(mb) => Outcome::degraded(format!("{mb} MB are available")),
        None => Outcome::missing("/proc/meminfo does not say"),
    }
}
