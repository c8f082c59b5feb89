//! `ptrace(2)` as far as a checkpoint needs it, one safe function per request.
//!
//! Every function takes the thread to act on by its id *as seen from the caller's PID namespace*. The kernel
//! checks that the calling thread is the tracer: misuse is an `ESRCH`, never undefined behaviour. Waiting is done
//! with `rustix::process::waitpid` and [`wait_options`].

use std::ffi::c_void;
use std::io;

use libc::{c_int, c_long, c_uint};
use rustix::process::{Pid, WaitOptions};

pub use libc::user_regs_struct as UserRegs;

/// `NT_PRSTATUS`: the general registers, as a [`UserRegs`].
pub const NT_PRSTATUS: u32 = 1;
/// `NT_X86_XSTATE`: the whole extended state in XSAVE layout.
pub const NT_X86_XSTATE: u32 = 0x202;

/// Size in bytes of a `siginfo_t` as the kernel passes it.
pub const SIGINFO_SIZE: usize = 128;

/// A `siginfo_t`, opaque.
pub type RawSiginfo = [u8; SIGINFO_SIZE];

/// Options for [`seize`] and [`set_options`] (`PTRACE_O_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options(pub u32);

impl Options {
    /// System call stops carry `SIGTRAP | 0x80`.
    pub const SYSGOOD: Options = Options(1);
    /// Stop (and trace the child) at `fork`.
    pub const TRACE_FORK: Options = Options(1 << 1);
    /// Stop (and trace the child) at `vfork`.
    pub const TRACE_VFORK: Options = Options(1 << 2);
    /// Stop (and trace the child) at `clone`.
    pub const TRACE_CLONE: Options = Options(1 << 3);
    /// Stop after a successful `execve`, before the first instruction.
    pub const TRACE_EXEC: Options = Options(1 << 4);
    /// Stop when the tracee is about to exit, its memory still being there.
    pub const TRACE_EXIT: Options = Options(1 << 6);
    /// Kill the tracee when the tracer ends.
    pub const EXIT_KILL: Options = Options(1 << 20);
    /// The tracee's seccomp filters are not run (needs `CAP_SYS_ADMIN` in the initial user namespace).
    pub const SUSPEND_SECCOMP: Options = Options(1 << 21);

    /// Both sets of options.
    #[must_use]
    pub const fn with(self, other: Options) -> Options {
        Options(self.0 | other.0)
    }
}

/// `PTRACE_EVENT_*`, the value above the signal in a wait status (`status >> 16`).
pub mod event {
    pub const FORK: i32 = 1;
    pub const VFORK: i32 = 2;
    pub const CLONE: i32 = 3;
    pub const EXEC: i32 = 4;
    pub const EXIT: i32 = 6;
    pub const SECCOMP: i32 = 7;
    pub const STOP: i32 = 128;
}

/// Options for `waitpid` on tracees: every kind of child (`__WALL`), without blocking if `nohang`.
#[must_use]
pub fn wait_options(nohang: bool) -> WaitOptions {
    let all = WaitOptions::from_bits_retain(libc::__WALL as u32);
    if nohang { all | WaitOptions::NOHANG } else { all }
}

/// The one place that calls `ptrace(2)`.
///
/// # Safety
/// `addr` and `data` must be what `request` expects: plain numbers, or pointers to memory of the right size that is
/// valid for the duration of the call.
unsafe fn raw(request: c_uint, pid: Pid, addr: usize, data: usize) -> io::Result<c_long> {
    // SAFETY: the caller vouches for `addr` and `data`; the kernel validates everything else.
    let result = unsafe {
        libc::ptrace(
            request,
            pid.as_raw_nonzero().get(),
            addr as *mut c_void,
            data as *mut c_void,
        )
    };
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// A request whose `addr` and `data` are plain numbers.
fn plain(request: c_uint, pid: Pid, addr: usize, data: usize) -> io::Result<()> {
    // SAFETY: only called with requests that take no pointers.
    unsafe { raw(request, pid, addr, data) }.map(drop)
}

/// `PTRACE_SEIZE`: attach without stopping.
pub fn seize(pid: Pid, options: Options) -> io::Result<()> {
    plain(libc::PTRACE_SEIZE, pid, 0, options.0 as usize)
}

/// `PTRACE_INTERRUPT`: make a seized tracee stop (with [`event::STOP`]).
pub fn interrupt(pid: Pid) -> io::Result<()> {
    plain(libc::PTRACE_INTERRUPT, pid, 0, 0)
}

/// `PTRACE_CONT`: let a stopped tracee run, delivering `signal` unless 0.
pub fn cont(pid: Pid, signal: i32) -> io::Result<()> {
    plain(libc::PTRACE_CONT, pid, 0, signal as usize)
}

/// `PTRACE_SYSCALL`: run to the next entry to or exit from a system call.
pub fn cont_to_syscall(pid: Pid, signal: i32) -> io::Result<()> {
    plain(libc::PTRACE_SYSCALL, pid, 0, signal as usize)
}

/// `PTRACE_SINGLESTEP`: run one instruction; of a `syscall` instruction, the whole call.
pub fn step(pid: Pid) -> io::Result<()> {
    plain(libc::PTRACE_SINGLESTEP, pid, 0, 0)
}

/// `PTRACE_LISTEN`: keep a group-stopped tracee stopped, but let it notice `SIGCONT`.
pub fn listen(pid: Pid) -> io::Result<()> {
    plain(libc::PTRACE_LISTEN, pid, 0, 0)
}

/// `PTRACE_DETACH`: let a stopped tracee go, delivering `signal` unless 0.
pub fn detach(pid: Pid, signal: i32) -> io::Result<()> {
    plain(libc::PTRACE_DETACH, pid, 0, signal as usize)
}

/// `PTRACE_SETOPTIONS`.
pub fn set_options(pid: Pid, options: Options) -> io::Result<()> {
    plain(libc::PTRACE_SETOPTIONS, pid, 0, options.0 as usize)
}

/// `PTRACE_GETEVENTMSG`: for fork-like events the new thread's id, for exit events the exit status.
pub fn event_message(pid: Pid) -> io::Result<u64> {
    let mut message: libc::c_ulong = 0;
    // SAFETY: `data` points to an unsigned long that lives across the call.
    unsafe { raw(libc::PTRACE_GETEVENTMSG, pid, 0, &raw mut message as usize)? };
    Ok(message)
}

/// `PTRACE_GETREGS`: the general registers of a stopped tracee.
pub fn get_regs(pid: Pid) -> io::Result<UserRegs> {
    // SAFETY: `UserRegs` is plain old data, for which zero is a valid value.
    let mut regs: UserRegs = unsafe { std::mem::zeroed() };
    // SAFETY: `data` points to a `user_regs_struct` that lives across the call.
    unsafe { raw(libc::PTRACE_GETREGS, pid, 0, &raw mut regs as usize)? };
    Ok(regs)
}

/// `PTRACE_SETREGS`: set the general registers, including `fs_base` and `gs_base`.
pub fn set_regs(pid: Pid, regs: &UserRegs) -> io::Result<()> {
    // SAFETY: `data` points to a `user_regs_struct` that lives across the call; the kernel only reads it.
    unsafe { raw(libc::PTRACE_SETREGS, pid, 0, std::ptr::from_ref(regs) as usize)? };
    Ok(())
}

/// `PTRACE_GETREGSET`: fills `buffer` with the register set `kind` and returns how many bytes it has.
pub fn get_regset(pid: Pid, kind: u32, buffer: &mut [u8]) -> io::Result<usize> {
    let mut vector = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: `data` points to an iovec describing `buffer`, both alive across the call.
    unsafe {
        raw(
            libc::PTRACE_GETREGSET,
            pid,
            kind as usize,
            &raw mut vector as usize,
        )?
    };
    Ok(vector.iov_len)
}

/// `PTRACE_SETREGSET`: sets the register set `kind` from `bytes`.
pub fn set_regset(pid: Pid, kind: u32, bytes: &[u8]) -> io::Result<()> {
    let mut vector = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: `data` points to an iovec describing `bytes`, alive across the call; the kernel only reads the bytes.
    unsafe {
        raw(
            libc::PTRACE_SETREGSET,
            pid,
            kind as usize,
            &raw mut vector as usize,
        )?
    };
    Ok(())
}

/// `PTRACE_GETSIGMASK`: the blocked signals of a stopped tracee (bit `n - 1` is signal `n`).
pub fn get_sigmask(pid: Pid) -> io::Result<u64> {
    let mut mask: u64 = 0;
    // SAFETY: `addr` is the size of the mask, `data` points to as many bytes, alive across the call.
    unsafe {
        raw(
            libc::PTRACE_GETSIGMASK,
            pid,
            size_of::<u64>(),
            &raw mut mask as usize,
        )?
    };
    Ok(mask)
}

/// `PTRACE_SETSIGMASK`.
pub fn set_sigmask(pid: Pid, mask: u64) -> io::Result<()> {
    // SAFETY: `addr` is the size of the mask, `data` points to as many bytes, alive across the call.
    unsafe {
        raw(
            libc::PTRACE_SETSIGMASK,
            pid,
            size_of::<u64>(),
            &raw const mask as usize,
        )?
    };
    Ok(())
}

/// Which queue of pending signals [`peek_siginfo`] reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// Signals sent to this thread.
    Thread,
    /// Signals sent to the process.
    Process,
}

/// `PTRACE_PEEKSIGINFO`: up to `limit` pending signals of a queue, in order, without taking them out.
pub fn peek_siginfo(pid: Pid, queue: Queue, limit: usize) -> io::Result<Vec<RawSiginfo>> {
    #[repr(C)]
    struct Arguments {
        offset: u64,
        flags: u32,
        count: i32,
    }
    let flags = if queue == Queue::Process {
        libc::PTRACE_PEEKSIGINFO_SHARED
    } else {
        0
    };
    let mut found = vec![[0u8; SIGINFO_SIZE]; limit];
    let count = c_int::try_from(limit).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let arguments = Arguments {
        offset: 0,
        flags,
        count,
    };
    // SAFETY: `addr` points to the arguments, `data` to `limit` siginfos, both alive across the call.
    let got = unsafe {
        raw(
            libc::PTRACE_PEEKSIGINFO,
            pid,
            &raw const arguments as usize,
            found.as_mut_ptr() as usize,
        )?
    };
    found.truncate(usize::try_from(got).unwrap_or(0));
    Ok(found)
}

/// `PTRACE_GETSIGINFO`: the signal that made a tracee stop.
pub fn get_siginfo(pid: Pid) -> io::Result<RawSiginfo> {
    let mut info = [0u8; SIGINFO_SIZE];
    // SAFETY: `data` points to as many bytes as a siginfo has, alive across the call.
    unsafe { raw(libc::PTRACE_GETSIGINFO, pid, 0, info.as_mut_ptr() as usize)? };
    Ok(info)
}

/// What `rseq(2)` was told by a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RseqConfiguration {
    /// Address of the `struct rseq`; 0 if none is registered.
    pub address: u64,
    /// Size in bytes that was registered.
    pub size: u32,
    /// Signature before each abort handler.
    pub signature: u32,
    /// Flags.
    pub flags: u32,
}

/// `PTRACE_GET_RSEQ_CONFIGURATION` (kernel 5.13).
pub fn get_rseq(pid: Pid) -> io::Result<RseqConfiguration> {
    const REQUEST: c_uint = 0x420f;
    #[repr(C)]
    #[derive(Default)]
    struct Raw {
        address: u64,
        size: u32,
        signature: u32,
        flags: u32,
        pad: u32,
    }
    let mut found = Raw::default();
    // SAFETY: `addr` is the size of the structure, `data` points to it, alive across the call.
    unsafe { raw(REQUEST, pid, size_of::<Raw>(), &raw mut found as usize)? };
    Ok(RseqConfiguration {
        address: found.address,
        size: found.size,
        signature: found.signature,
        flags: found.flags,
    })
}

/// `PTRACE_SECCOMP_GET_FILTER`: the classic BPF instructions (8 bytes each) of filter number `index`, 0 being the
/// one installed last. `Ok(None)` if there are not so many.
pub fn get_seccomp_filter(pid: Pid, index: usize) -> io::Result<Option<Vec<u8>>> {
    const REQUEST: c_uint = 0x420c;
    // SAFETY: with a null `data` the kernel only returns the number of instructions.
    let count = match unsafe { raw(REQUEST, pid, index, 0) } {
        Ok(count) => usize::try_from(count).unwrap_or(0),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut code = vec![0u8; count * 8];
    // SAFETY: `data` points to room for all instructions of the filter, 8 bytes each; filters never change.
    unsafe { raw(REQUEST, pid, index, code.as_mut_ptr() as usize)? };
    Ok(Some(code))
}

/// `PTRACE_SECCOMP_GET_METADATA`: the flags filter number `index` was installed with.
pub fn get_seccomp_flags(pid: Pid, index: usize) -> io::Result<u64> {
    const REQUEST: c_uint = 0x420d;
    let mut metadata = [index as u64, 0u64];
    // SAFETY: `addr` is the size of the structure (two 64-bit numbers), `data` points to it.
    unsafe {
        raw(
            REQUEST,
            pid,
            size_of_val(&metadata),
            metadata.as_mut_ptr() as usize,
        )?
    };
    Ok(metadata[1])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    struct Reaped(std::process::Child);
    impl Drop for Reaped {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn a_sleeping_process_is_stopped_read_and_let_go() {
        let child = Reaped(Command::new("sleep").arg("1000").spawn().unwrap());
        let pid = Pid::from_raw(i32::try_from(child.0.id()).unwrap()).unwrap();
        seize(pid, Options::SYSGOOD).unwrap();
        interrupt(pid).unwrap();
        let (_, status) = rustix::process::waitpid(Some(pid), wait_options(false))
            .unwrap()
            .unwrap();
        assert_eq!(status.as_raw() >> 16, event::STOP);
        let regs = get_regs(pid).unwrap();
        assert_ne!(regs.rip, 0);
        set_regs(pid, &regs).unwrap();
        assert_eq!(get_regs(pid).unwrap().rsp, regs.rsp);
        let mut xstate = vec![0u8; 16384];
        let size = get_regset(pid, NT_X86_XSTATE, &mut xstate).unwrap();
        assert!(
            size >= 576,
            "an XSAVE area has at least the legacy area and its header"
        );
        set_regset(pid, NT_X86_XSTATE, &xstate[..size]).unwrap();
        let mask = get_sigmask(pid).unwrap();
        set_sigmask(pid, mask | 1 << 9).unwrap();
        assert_eq!(get_sigmask(pid).unwrap(), mask | 1 << 9);
        rustix::process::kill_process(pid, rustix::process::Signal::USR1).unwrap();
        let pending = peek_siginfo(pid, Queue::Process, 8).unwrap();
        assert_eq!(pending.len(), 1);
        assert_eq!(pending[0][0], 10);
        assert_eq!(peek_siginfo(pid, Queue::Thread, 8).unwrap().len(), 0);
        get_rseq(pid).unwrap();
        assert_eq!(get_seccomp_filter(pid, 0).ok().flatten(), None);
        detach(pid, 0).unwrap();
    }

    #[test]
    fn a_thread_that_is_not_a_tracee_is_an_error() {
        let me = rustix::process::getpid();
        assert_eq!(get_regs(me).unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }
}
