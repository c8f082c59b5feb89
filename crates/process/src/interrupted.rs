//! What has to be set right in a thread's registers when it is stopped.

use deltabox_sys::process_vm;
use deltabox_sys::ptrace::UserRegs;

use crate::ids::HostPid;
use crate::tracee::Context;

/// Some calls end with `EINTR` when a thread is only stopped and let go on (signal(7), "Interruption of system calls
/// by stop signals"). Nobody may notice that: they are made to restart instead, unless a signal handler runs. Returns
/// whether something was changed.
pub(crate) fn make_restartable(regs: &mut UserRegs) -> bool {
    const ERESTARTNOHAND: i64 = 514;
    const CALLS: [i64; 20] = [
        libc::SYS_epoll_wait,
        libc::SYS_epoll_pwait,
        libc::SYS_epoll_pwait2,
        libc::SYS_semop,
        libc::SYS_semtimedop,
        libc::SYS_rt_sigtimedwait,
        libc::SYS_io_getevents,
        // Sockets with a time limit (SO_RCVTIMEO, SO_SNDTIMEO).
        libc::SYS_read,
        libc::SYS_readv,
        libc::SYS_write,
        libc::SYS_writev,
        libc::SYS_accept,
        libc::SYS_accept4,
        libc::SYS_connect,
        libc::SYS_recvfrom,
        libc::SYS_recvmsg,
        libc::SYS_recvmmsg,
        libc::SYS_sendto,
        libc::SYS_sendmsg,
        libc::SYS_sendmmsg,
    ];
    let interrupted = regs.rax.cast_signed() == -i64::from(libc::EINTR);
    if !interrupted || !CALLS.contains(&regs.orig_rax.cast_signed()) {
        return false;
    }
    regs.rax = (-ERESTARTNOHAND).cast_unsigned();
    true
}

/// A thread that was stopped inside of a restartable sequence continues at its abort handler, as the kernel would have
/// it. It has to be done here because injected code runs with another `rip`, at which the kernel forgets the sequence.
pub(crate) fn leave_critical_section(tid: HostPid, context: &mut Context) {
    /// Offset of the pointer to the current sequence in `struct rseq`.
    const CURRENT: u64 = 8;
    if context.rseq.address == 0 {
        return;
    }
    let mut pointer = [0u8; 8];
    if process_vm::read_exact(tid.pid(), context.rseq.address + CURRENT, &mut pointer).is_err() {
        return;
    }
    let pointer = u64::from_ne_bytes(pointer);
    // struct rseq_cs: version and flags (2 x 32 bits), start, length, abort handler (64 bits each).
    let mut sequence = [0u8; 32];
    if pointer == 0 || process_vm::read_exact(tid.pid(), pointer, &mut sequence).is_err() {
        return;
    }
    let word = |at: usize| sequence[at..at + 8].try_into().map_or(0, u64::from_ne_bytes);
    let (start, length, abort) = (word(8), word(16), word(24));
    if context.regs.rip.wrapping_sub(start) < length {
        context.regs.rip = abort;
    }
}
