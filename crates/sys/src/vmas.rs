//! How every mapping of a process is advised, locked and sealed, whatever memory it holds.
//!
//! `/proc/PID/maps` does not say, and `/proc/PID/smaps` looks at every page to say it: 1 ms with 50 MB resident, 10 ms
//! with 1 GB. A BPF iterator over the mappings (`bpf_iter__task_vma`, kernel 6.1 for a single process) reads the very
//! words the kernel goes by, in 15 to 40 us.
//!
//! Nothing of the kernel's insides is taken for granted: where the words are is looked up in the kernel's own type
//! information, and what a bit means is found by setting it on memory of ours.

mod btf;
mod samples;

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use rustix::process::Pid;

/// What can be said of a mapping.
pub mod flag {
    /// Locked in memory (`mlock`).
    pub const LOCKED: u16 = 1;
    /// ... but only what is there (`MLOCK_ONFAULT`).
    pub const ON_FAULT: u16 = 1 << 1;
    /// `MADV_DONTFORK`.
    pub const DONT_FORK: u16 = 1 << 2;
    /// `MADV_WIPEONFORK`.
    pub const WIPE_ON_FORK: u16 = 1 << 3;
    /// `MADV_DONTDUMP`.
    pub const DONT_DUMP: u16 = 1 << 4;
    /// `MADV_HUGEPAGE`.
    pub const HUGE_PAGE: u16 = 1 << 5;
    /// `MADV_NOHUGEPAGE`.
    pub const NO_HUGE_PAGE: u16 = 1 << 6;
    /// `MADV_MERGEABLE`.
    pub const MERGEABLE: u16 = 1 << 7;
    /// `MADV_SEQUENTIAL`.
    pub const SEQUENTIAL: u16 = 1 << 8;
    /// `MADV_RANDOM`.
    pub const RANDOM: u16 = 1 << 9;
    /// `MAP_GROWSDOWN`.
    pub const GROWS_DOWN: u16 = 1 << 10;
    /// Sealed (`mseal`).
    pub const SEALED: u16 = 1 << 11;
    /// A shared mapping that can never be made writable: its file was opened for reading only.
    pub const NEVER_WRITABLE: u16 = 1 << 12;
}

/// The kernel's words of one mapping, as the program below writes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Raw {
    start: u64,
    flags: u64,
}

const RAW_SIZE: usize = 16;

/// One mapping's first address and its bits of [`flag`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flags {
    pub start: u64,
    pub flags: u16,
}

/// Reads the flags of mappings. One is enough for everybody.
#[derive(Debug)]
pub struct Reader {
    program: OwnedFd,
    meanings: Vec<samples::Meaning>,
}

impl Reader {
    /// Loads the program and finds out what the bits mean.
    ///
    /// # Errors
    /// When the kernel has no BPF or no type information, or this process may not use it.
    pub fn new() -> io::Result<Reader> {
        let kernel = std::fs::read("/sys/kernel/btf/vmlinux")?;
        let places = btf::find(&kernel).ok_or(io::ErrorKind::Unsupported)?;
        let mut reader = Reader {
            program: load(&places)?,
            meanings: Vec::new(),
        };
        reader.meanings = samples::meanings(|| reader.raw(rustix::process::getpid()))?;
        Ok(reader)
    }

    /// The flags of all mappings, in the order of their addresses.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn read(&self, pid: Pid) -> io::Result<Vec<Flags>> {
        let understood = |raw: Raw| Flags {
            start: raw.start,
            flags: self
                .meanings
                .iter()
                .filter(|meaning| meaning.holds(raw.flags))
                .fold(0, |flags, meaning| flags | meaning.flag),
        };
        Ok(self.raw(pid)?.into_iter().map(understood).collect())
    }

    fn raw(&self, pid: Pid) -> io::Result<Vec<Raw>> {
        let mut bytes = Vec::with_capacity(16 << 10);
        self.iterator(pid)?.read_to_end(&mut bytes)?;
        let word = |bytes: &[u8]| bytes.first_chunk().map_or(0, |word| u64::from_ne_bytes(*word));
        let raw = |bytes: &[u8]| Raw {
            start: word(bytes),
            flags: word(&bytes[8..]),
        };
        Ok(bytes.chunks_exact(RAW_SIZE).map(raw).collect())
    }

    fn iterator(&self, pid: Pid) -> io::Result<File> {
        // union bpf_iter_link_info: of a task, the thread and the process.
        let which = [0, pid.as_raw_nonzero().get(), 0, 0];
        let mut link = LinkCreate {
            program: self.program.as_raw_fd(),
            attach_type: TRACE_ITER,
            info: which.as_ptr() as u64,
            info_size: size_of_val(&which) as u32,
            ..LinkCreate::default()
        };
        let link = bpf(LINK_CREATE, &mut link)?;
        let mut create = IterCreate {
            link: link.as_raw_fd(),
            flags: 0,
        };
        bpf(ITER_CREATE, &mut create).map(File::from)
    }
}

// include/uapi/linux/bpf.h
const PROG_LOAD: i32 = 5;
const LINK_CREATE: i32 = 28;
const ITER_CREATE: i32 = 33;
const PROG_TYPE_TRACING: u32 = 26;
const TRACE_ITER: u32 = 28;
const SEQ_WRITE: i32 = 127;

/// `union bpf_attr` for `BPF_PROG_LOAD`, as far as it is needed.
#[derive(Default)]
#[repr(C)]
struct ProgLoad {
    kind: u32,
    instructions: u32,
    code: u64,
    license: u64,
    log: [u64; 2],
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
    own_types: [u64; 4],
    padding: u32,
    attach_to: u32,
}

/// The same for `BPF_LINK_CREATE`.
#[derive(Default)]
#[repr(C)]
struct LinkCreate {
    program: i32,
    target: u32,
    attach_type: u32,
    flags: u32,
    info: u64,
    info_size: u32,
    padding: u32,
}

/// The same for `BPF_ITER_CREATE`.
#[repr(C)]
struct IterCreate {
    link: i32,
    flags: u32,
}

/// Runs a command of `bpf(2)` that returns a descriptor (close-on-exec).
fn bpf<T>(command: i32, argument: &mut T) -> io::Result<OwnedFd> {
    let (argument, size) = (std::ptr::from_mut(argument), size_of::<T>());
    // SAFETY: each caller passes the structure that belongs to `command`, whose pointers are to memory that outlives
    // the call; it is borrowed for the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, argument, size) };
    let fd = i32::try_from(fd).map_err(|_| io::ErrorKind::InvalidData)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just returned this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// One instruction of BPF.
const fn instruction(code: u8, target: u8, source: u8, offset: i16, immediate: i32) -> u64 {
    (code as u64)
        | (target as u64) << 8
        | (source as u64) << 12
        | (offset.cast_unsigned() as u64) << 16
        | (immediate.cast_unsigned() as u64) << 32
}

/// Loads the program that writes start and flags of each mapping. The kernel lets only programs under a license
/// compatible with the GPL look at its structures; this one, what `load` says, is offered under MIT and GPL as well.
fn load(places: &btf::Places) -> io::Result<OwnedFd> {
    const LOAD: u8 = 0x79;
    const STORE: u8 = 0x7b;
    let i = instruction;
    let code = [
        i(LOAD, 7, 1, 16, 0), // r7 = context->vma
        i(0x55, 7, 0, 2, 0),  // if it is there, go on
        i(0xb7, 0, 0, 0, 0),  // r0 = 0
        i(0x95, 0, 0, 0, 0),  // return r0
        i(LOAD, 2, 7, places.start, 0),
        i(STORE, 10, 2, -16, 0),
        i(LOAD, 2, 7, places.flags, 0),
        i(STORE, 10, 2, -8, 0),
        i(LOAD, 1, 1, 0, 0),   // r1 = context->meta
        i(LOAD, 1, 1, 0, 0),   // r1 = meta->seq
        i(0xbf, 2, 10, 0, 0),  // r2 = frame
        i(0x07, 2, 0, 0, -16), // r2 -= 16
        i(0xb7, 3, 0, 0, RAW_SIZE as i32),
        i(0x85, 0, 0, 0, SEQ_WRITE),
        i(0xb7, 0, 0, 0, 0),
        i(0x95, 0, 0, 0, 0),
    ];
    let mut argument = ProgLoad {
        kind: PROG_TYPE_TRACING,
        instructions: code.len() as u32,
        code: code.as_ptr() as u64,
        license: c"Dual MIT/GPL".as_ptr() as u64,
        attach_type: TRACE_ITER,
        attach_to: places.iterator,
        ..ProgLoad::default()
    };
    bpf(PROG_LOAD, &mut argument)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_are_laid_out_as_the_kernel_has_them() {
        assert_eq!(std::mem::offset_of!(ProgLoad, attach_type), 68);
        assert_eq!(std::mem::offset_of!(ProgLoad, attach_to), 108);
        assert_eq!(std::mem::offset_of!(LinkCreate, info), 16);
        assert_eq!(std::mem::offset_of!(LinkCreate, info_size), 24);
    }
}
