//! The `PAGEMAP_SCAN` ioctl on `/proc/PID/pagemap` (kernel 6.7): which pages are there, and which were written.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use linux_raw_sys::general as k;

/// A run of pages with the same categories.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Region {
    /// First byte.
    pub start: u64,
    /// Byte after the last.
    pub end: u64,
    /// Bits of [`category`], of those asked for.
    pub categories: u64,
}

/// What can be said of a page.
pub mod category {
    /// The mapping is registered for asynchronous write-protect.
    pub const WRITE_PROTECT_ALLOWED: u64 = 1;
    /// Written since it was last protected (or never protected).
    pub const WRITTEN: u64 = 1 << 1;
    /// Belongs to a file (or shared memory), not a private copy.
    pub const FILE: u64 = 1 << 2;
    /// In memory.
    pub const PRESENT: u64 = 1 << 3;
    /// In swap, or a marker in the page table.
    pub const SWAPPED: u64 = 1 << 4;
    /// The shared page of zeros.
    pub const ZERO: u64 = 1 << 5;
    /// Part of a huge page.
    pub const HUGE: u64 = 1 << 6;
    /// A guard page made by `MADV_GUARD_INSTALL` (kernel 6.15).
    pub const GUARD: u64 = 1 << 8;
}

/// Which pages to report: those for which all of `mask` and any of `any_of` (0 = no condition) are set, after the
/// bits in `inverted` have been flipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Filter {
    /// Categories whose meaning is flipped first.
    pub inverted: u64,
    /// All of these must be set.
    pub mask: u64,
    /// At least one of these must be set.
    pub any_of: u64,
    /// Which categories to return.
    pub report: u64,
    /// Protect the reported pages again, so that the next scan tells what was written after this one. Mappings that
    /// are not registered are skipped.
    pub protect: bool,
}

/// Scans `start .. end` (bytes, page-aligned) of the process whose `/proc/PID/pagemap` is `pagemap` and fills
/// `regions`. Returns how many were filled and where to go on (`end`, unless `regions` was full).
///
/// Two things that cost: with `report` or a condition on [`category::FILE`] or [`category::ZERO`] the kernel looks at
/// the `struct page` of every page in the range (35 ns each instead of 3 to 5), and `protect` installs markers, and
/// with them page tables, for everything in the range that is not there.
pub fn scan(
    pagemap: &impl AsFd,
    start: u64,
    end: u64,
    filter: &Filter,
    regions: &mut [Region],
) -> io::Result<(usize, u64)> {
    // _IOWR('f', 16, struct pm_scan_arg)
    const PAGEMAP_SCAN: u64 = 3 << 30 | (size_of::<k::pm_scan_arg>() as u64) << 16 | (b'f' as u64) << 8 | 16;
    let mut argument = k::pm_scan_arg {
        size: size_of::<k::pm_scan_arg>() as u64,
        flags: if filter.protect {
            u64::from(k::PM_SCAN_WP_MATCHING)
        } else {
            0
        },
        start,
        end,
        walk_end: 0,
        vec: regions.as_mut_ptr() as u64,
        vec_len: regions.len() as u64,
        max_pages: 0,
        category_inverted: filter.inverted,
        category_mask: filter.mask,
        category_anyof_mask: filter.any_of,
        return_mask: filter.report,
    };
    // SAFETY: `argument` is the structure of this request, and its `vec` describes `regions`, which has the layout
    // of `struct page_region`; both are borrowed for the call.
    let filled = unsafe {
        libc::ioctl(
            pagemap.as_fd().as_raw_fd(),
            PAGEMAP_SCAN,
            std::ptr::from_mut(&mut argument),
        )
    };
    match usize::try_from(filled) {
        // The kernel's `walk_end` is not to be trusted (6.18: it may be the one of an earlier round), the regions are.
        Ok(filled) if filled > 0 && filled == regions.len() => Ok((filled, regions[filled - 1].end)),
        Ok(filled) => Ok((filled, end)),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// Asks for huge pages in this memory (`MADV_HUGEPAGE`, madvise(2)); only whole huge pages inside it can come.
///
/// # Errors
/// `EINVAL` when the kernel has none, or when the memory does not start at a page.
pub fn advise_huge(memory: &mut [u8]) -> io::Result<()> {
    // SAFETY: the range is memory of ours, borrowed for the call; the advice changes how it is backed, not its content.
    let result = unsafe { libc::madvise(memory.as_mut_ptr().cast(), memory.len(), libc::MADV_HUGEPAGE) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uffd;
    use std::fs::File;

    const PAGE: usize = 4096;

    #[test]
    fn written_pages_are_reported_once() {
        let uffd = uffd::create().unwrap();
        uffd::enable_async_write_protect(&uffd).unwrap();
        let mut memory = vec![0u8; 64 * PAGE];
        let start = (memory.as_ptr() as u64).next_multiple_of(PAGE as u64);
        let offset = (start - memory.as_ptr() as u64) as usize;
        let end = start + 32 * PAGE as u64;
        memory.fill(1);
        uffd::register_write_protect(&uffd, start, end - start).unwrap();
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        let filter = Filter {
            mask: category::WRITTEN,
            report: category::WRITTEN | category::PRESENT,
            protect: true,
            ..Filter::default()
        };
        let mut found = [Region::default(); 8];
        let (count, walked) = scan(&pagemap, start, end, &filter, &mut found).unwrap();
        assert_eq!((count, walked), (1, end));
        assert_eq!((found[0].start, found[0].end), (start, end));
        assert_eq!(scan(&pagemap, start, end, &filter, &mut found).unwrap().0, 0);
        memory[offset + 5 * PAGE] = 2;
        let (count, _) = scan(&pagemap, start, end, &filter, &mut found).unwrap();
        assert_eq!(count, 1);
        assert_eq!(found[0].start, start + 5 * PAGE as u64);
        uffd::unregister(&uffd, start, end - start).unwrap();
        assert!(memory.contains(&2));
    }
}
