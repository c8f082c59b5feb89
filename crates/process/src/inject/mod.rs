//! System calls run inside of a stopped process, with its own identity and privileges (seccomp suspended).
//!
//! Two ways, one result:
//! - **stepping**: the thread is pointed at a `syscall` instruction of its own vDSO and single-stepped over it: one stop
//!   per call; two where a trap must not be used, and for calls that make or replace a task.
//! - **batches**: a mapping of a few pages, injected by stepping, holds a loop of a few instructions and an array of
//!   records {number, arguments, result}; the loop runs them all and ends in a trap: one stop for any number of calls.
//!
//! The mapping exists only while the process is stopped.

mod batch;
mod pass;

pub use batch::{Arg, Batch, Buffer, CallId};
pub use pass::pass;

use deltabox_sys::process_vm;
use rustix::io::Errno;

use crate::error::TraceError;
use crate::ids::{Addr, HostPid};
use crate::tracee::Tracee;

/// Runs the records from `rbx` to `r12`; with `r13` not 0 it ends at the first error.
const RUNNER: [u8; 58] = [
    0x4c, 0x39, 0xe3, // next: cmp rbx, r12
    0x73, 0x32, // jae done
    0x48, 0x8b, 0x03, // mov rax, [rbx]
    0x48, 0x8b, 0x7b, 0x08, // mov rdi, [rbx+8]
    0x48, 0x8b, 0x73, 0x10, // mov rsi, [rbx+16]
    0x48, 0x8b, 0x53, 0x18, // mov rdx, [rbx+24]
    0x4c, 0x8b, 0x53, 0x20, // mov r10, [rbx+32]
    0x4c, 0x8b, 0x43, 0x28, // mov r8, [rbx+40]
    0x4c, 0x8b, 0x4b, 0x30, // mov r9, [rbx+48]
    0x0f, 0x05, // syscall
    0x48, 0x89, 0x43, 0x38, // mov [rbx+56], rax
    0x48, 0x83, 0xc3, 0x40, // add rbx, 64
    0x4d, 0x85, 0xed, // test r13, r13
    0x74, 0xd1, // je next
    0x48, 0x3d, 0x01, 0xf0, 0xff, 0xff, // cmp rax, -4095
    0x72, 0xc9, // jb next
    0xcc, // done: int3
    0x0f, 0x0b, // ud2, never reached
];

/// Bytes at the start of the scratch mapping that hold the code.
const CODE_SIZE: u64 = 128;

/// Size of a new scratch mapping in bytes, enough for most batches.
const SCRATCH_SIZE: u64 = 32 << 10;

/// What the injected memory may grow to, in bytes.
pub const ROOM: u64 = 16 << 20;

const PAGE: u64 = 4096;

/// Memory injected into a process.
#[derive(Debug, Clone, Copy)]
struct Scratch {
    start: Addr,
    size: u64,
    /// The memory is executable and holds the loop.
    runnable: bool,
}

/// What is needed to run system calls in one process. Belongs to one address space.
#[derive(Debug)]
pub struct Injector {
    pid: HostPid,
    instruction: Addr,
    scratch: Option<Scratch>,
    place: Option<Addr>,
}

impl Injector {
    /// For the process `pid`, which has a `syscall` instruction at `instruction`.
    #[must_use]
    pub fn new(pid: HostPid, instruction: Addr) -> Injector {
        Injector {
            pid,
            instruction,
            scratch: None,
            place: None,
        }
    }

    /// Runs one system call. The outer error means that the process cannot be worked with any more.
    pub fn call(
        &self,
        tracee: &mut Tracee,
        number: i64,
        args: [u64; 6],
    ) -> Result<Result<u64, Errno>, TraceError> {
        tracee.step(self.instruction, number.cast_unsigned(), args)
    }

    /// For calls that make or replace a task: as [`Injector::call`], reporting `PTRACE_EVENT_*` stops of the call with their message.
    pub fn call_with_events(
        &self,
        tracee: &mut Tracee,
        number: i64,
        args: [u64; 6],
        on_event: impl FnMut(i32, u64),
    ) -> Result<Result<u64, Errno>, TraceError> {
        tracee.call(self.instruction, number.cast_unsigned(), args, on_event)
    }

    /// Runs all calls of `batch` in `tracee`.
    pub fn run(&mut self, tracee: &mut Tracee, batch: &mut Batch) -> Result<(), TraceError> {
        if batch.is_empty() {
            return Ok(());
        }
        let scratch = self.scratch(tracee, batch.size() as u64)?;
        let base = scratch.start.plus(CODE_SIZE);
        let mut memory = batch.encode(base);
        self.write(base, &memory)?;
        if !scratch.runnable || !self.run_records(tracee, scratch, batch)? {
            self.step_records(tracee, base, batch, &mut memory)?;
        }
        self.read(base, &mut memory)?;
        batch.decode(&memory);
        Ok(())
    }

    /// Puts bytes into the scratch memory and tells where. They stay until the next batch.
    pub fn stage(&mut self, tracee: &mut Tracee, bytes: &[u8]) -> Result<Addr, TraceError> {
        let base = self.scratch(tracee, bytes.len() as u64)?.start.plus(CODE_SIZE);
        self.write(base, bytes)?;
        Ok(base)
    }

    /// `Ok(false)` if the loop cannot be used at this moment.
    fn run_records(&self, tracee: &mut Tracee, scratch: Scratch, batch: &Batch) -> Result<bool, TraceError> {
        let first = scratch.start.plus(CODE_SIZE).0;
        let after = first + (batch.len() * batch::RECORD) as u64;
        let stop_on_error = u64::from(batch.stops_on_error());
        tracee.run_to_trap(|regs| {
            regs.rip = scratch.start.0;
            regs.rbx = first;
            regs.r12 = after;
            regs.r13 = stop_on_error;
        })
    }

    fn step_records(
        &self,
        tracee: &mut Tracee,
        base: Addr,
        batch: &Batch,
        memory: &mut [u8],
    ) -> Result<(), TraceError> {
        for place in 0..batch.len() {
            let (number, args) = batch.resolved(place, base);
            let result = tracee.step(self.instruction, number, args)?;
            let failed = result.is_err();
            let raw = result.unwrap_or_else(|errno| (-i64::from(errno.raw_os_error())).cast_unsigned());
            let at = (place + 1) * batch::RECORD - 8;
            memory[at..at + 8].copy_from_slice(&raw.to_ne_bytes());
            self.write(base.plus(at as u64), &raw.to_ne_bytes())?;
            if failed && batch.stops_on_error() {
                break;
            }
        }
        Ok(())
    }

    /// Memory in the process for at least `size` bytes of a batch.
    fn scratch(&mut self, tracee: &mut Tracee, size: u64) -> Result<Scratch, TraceError> {
        let wanted = (CODE_SIZE + size).next_multiple_of(PAGE);
        if let Some(scratch) = self.scratch {
            if scratch.size >= wanted {
                return Ok(scratch);
            }
            self.clear(tracee)?;
        }
        let size = wanted.max(SCRATCH_SIZE);
        // Programs may have forbidden themselves memory that is both writable and executable.
        let mut scratch = None;
        for (protection, runnable) in [(libc::PROT_EXEC, true), (0, false)] {
            let protection = (protection | libc::PROT_READ | libc::PROT_WRITE) as u64;
            let fixed = if self.place.is_some() {
                libc::MAP_FIXED_NOREPLACE
            } else {
                0
            };
            let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | fixed) as u64;
            let args = [
                self.place.unwrap_or_default().0,
                size,
                protection,
                flags,
                u64::MAX,
                0,
            ];
            match self.call(tracee, libc::SYS_mmap, args)? {
                Ok(start) => {
                    scratch = Some(Scratch {
                        start: Addr(start),
                        size,
                        runnable,
                    });
                    break;
                }
                Err(errno) if !runnable => {
                    return Err(TraceError::Call {
                        pid: self.pid,
                        name: "mmap",
                        errno,
                    });
                }
                Err(_) => {}
            }
        }
        self.scratch = scratch;
        let scratch = scratch.ok_or(TraceError::NoInstruction { pid: self.pid })?;
        if scratch.runnable {
            self.write(scratch.start, &RUNNER)?;
        }
        Ok(scratch)
    }

    /// The range of the injected memory, which is no part of the program.
    #[must_use]
    pub fn scratch_range(&self) -> Option<std::ops::Range<u64>> {
        self.scratch
            .map(|scratch| scratch.start.0..scratch.start.0 + scratch.size)
    }

    /// Removes the injected memory.
    pub fn clear(&mut self, tracee: &mut Tracee) -> Result<(), TraceError> {
        let Some(scratch) = self.scratch.take() else {
            return Ok(());
        };
        let args = [scratch.start.0, scratch.size, 0, 0, 0, 0];
        self.call(tracee, libc::SYS_munmap, args)?
            .map(drop)
            .map_err(|errno| TraceError::Call {
                pid: self.pid,
                name: "munmap",
                errno,
            })
    }

    /// Forgets the injected memory: the address space it was in has been replaced.
    pub fn forget(&mut self) {
        self.scratch = None;
    }

    /// Where to put the memory from now on, instead of wherever the kernel likes. There must be room for
    /// [`ROOM`] bytes.
    pub fn set_place(&mut self, place: Addr) {
        self.place = Some(place);
    }

    /// Where the `syscall` instruction is.
    #[must_use]
    pub fn instruction(&self) -> Addr {
        self.instruction
    }

    /// Uses another `syscall` instruction from now on.
    pub fn set_instruction(&mut self, instruction: Addr) {
        self.instruction = instruction;
    }

    /// Reads memory of the process.
    pub fn read(&self, address: Addr, buffer: &mut [u8]) -> Result<(), TraceError> {
        let length = buffer.len();
        process_vm::read_exact(self.pid.pid(), address.0, buffer).map_err(|source| TraceError::Memory {
            pid: self.pid,
            what: "read",
            address,
            length,
            source,
        })
    }

    /// Writes memory of the process.
    pub fn write(&self, address: Addr, bytes: &[u8]) -> Result<(), TraceError> {
        process_vm::write_exact(self.pid.pid(), address.0, bytes).map_err(|source| TraceError::Memory {
            pid: self.pid,
            what: "write",
            address,
            length: bytes.len(),
            source,
        })
    }
}
