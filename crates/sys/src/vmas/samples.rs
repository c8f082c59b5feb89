//! What the bits of the kernel's word mean: each is set on memory of ours, to see which one it is.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::{Raw, flag};

const PAGE: usize = 4096;

/// How to tell one flag.
#[derive(Debug, Clone, Copy)]
pub(super) struct Meaning {
    pub(super) flag: u16,
    mask: u64,
    /// The flag is the absence of these bits.
    absent: bool,
}

impl Meaning {
    pub(super) fn holds(self, word: u64) -> bool {
        let present = word & self.mask;
        if self.absent {
            present == 0
        } else {
            present == self.mask
        }
    }
}

/// Advice that leaves a bit.
const ADVICE: [(u16, i32); 8] = [
    (flag::DONT_FORK, libc::MADV_DONTFORK),
    (flag::WIPE_ON_FORK, libc::MADV_WIPEONFORK),
    (flag::DONT_DUMP, libc::MADV_DONTDUMP),
    (flag::HUGE_PAGE, libc::MADV_HUGEPAGE),
    (flag::NO_HUGE_PAGE, libc::MADV_NOHUGEPAGE),
    (flag::MERGEABLE, libc::MADV_MERGEABLE),
    (flag::SEQUENTIAL, libc::MADV_SEQUENTIAL),
    (flag::RANDOM, libc::MADV_RANDOM),
];

/// Finds the meanings; `read` reads the words of all mappings of this process.
pub(super) fn meanings(read: impl Fn() -> io::Result<Vec<Raw>>) -> io::Result<Vec<Meaning>> {
    let word_of = |sample: &Sample| {
        let found = read()?.into_iter().find(|raw| raw.start == sample.start as u64);
        found
            .map(|raw| raw.flags)
            .ok_or(io::Error::from(io::ErrorKind::NotFound))
    };
    let sample = Sample::anonymous(0)?;
    let plain = word_of(&sample)?;
    let mut found = Vec::new();
    let mut learn = |flag, mask, absent| found.push(Meaning { flag, mask, absent });
    for (flag, advice) in ADVICE {
        let sample = Sample::anonymous(0)?;
        // Advice that this kernel does not know has been given to nobody.
        if sample.call(libc::SYS_madvise, advice).is_ok() {
            learn(flag, word_of(&sample)? & !plain, false);
        }
    }
    sample.call(libc::SYS_mlock2, 0)?;
    let locked = word_of(&sample)?;
    learn(flag::LOCKED, locked & !plain, false);
    let sample = Sample::anonymous(0)?;
    sample.call(libc::SYS_mlock2, libc::MLOCK_ONFAULT.cast_signed())?;
    learn(flag::ON_FAULT, word_of(&sample)? & !locked, false);
    let sample = Sample::anonymous(libc::MAP_GROWSDOWN)?;
    learn(flag::GROWS_DOWN, word_of(&sample)? & !plain, false);
    let sample = Sample::anonymous(0)?;
    if sample.call(libc::SYS_mseal, 0).is_ok() {
        // What is sealed stays: this page is there until the process ends.
        learn(flag::SEALED, word_of(&sample)? & !plain, false);
    }
    let memory = File::from(memfd_create("sample", MemfdFlags::CLOEXEC)?);
    ftruncate(&memory, PAGE as u64)?;
    let for_reading = File::open(format!("/proc/self/fd/{}", memory.as_raw_fd()))?;
    let never = word_of(&Sample::shared(&for_reading)?)?;
    let writable = word_of(&Sample::shared(&memory)?)?;
    learn(flag::NEVER_WRITABLE, writable & !never, true);
    match found.iter().all(|meaning| meaning.mask != 0) {
        true => Ok(found),
        false => Err(io::ErrorKind::Unsupported.into()),
    }
}

/// A page of its own, between pages that are not there so that it is not joined to a neighbour.
struct Sample {
    area: *mut libc::c_void,
    start: usize,
}

/// The sample and a page on either side; one that grows downwards is kept at a greater distance by the kernel.
const AREA: usize = 3 * PAGE;

impl Sample {
    fn anonymous(flags: i32) -> io::Result<Sample> {
        Sample::map(
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags,
            libc::PROT_READ | libc::PROT_WRITE,
            -1,
        )
    }

    /// Readable only, so that what differs is what the file was opened for.
    fn shared(file: &File) -> io::Result<Sample> {
        Sample::map(libc::MAP_SHARED, libc::PROT_READ, file.as_raw_fd())
    }

    fn map(flags: i32, protection: i32, fd: i32) -> io::Result<Sample> {
        let around = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: new memory at a place of the kernel's choice.
        let area = unsafe { libc::mmap(ptr::null_mut(), AREA, libc::PROT_NONE, around, -1, 0) };
        if area == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let sample = Sample {
            area,
            start: area.addr() + PAGE,
        };
        // SAFETY: in the middle of what has just been mapped and is used by nobody; `fd` is open or not used.
        let page = unsafe {
            libc::mmap(
                area.byte_add(PAGE),
                PAGE,
                protection,
                flags | libc::MAP_FIXED,
                fd,
                0,
            )
        };
        match page == libc::MAP_FAILED {
            true => Err(io::Error::last_os_error()),
            false => Ok(sample),
        }
    }

    /// A system call on the page: `madvise`, `mlock2`, `mseal`.
    fn call(&self, number: i64, argument: i32) -> io::Result<()> {
        // SAFETY: the calls change how the page is backed, not its content, and nothing refers to it.
        match unsafe { libc::syscall(number, self.start, PAGE, argument) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Sample {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` and used by nobody else. Fails for a sealed page, which then stays.
        unsafe { libc::munmap(self.area, AREA) };
    }
}
