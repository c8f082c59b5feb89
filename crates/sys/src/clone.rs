//! Making processes: `clone3` as a fork, `unshare` of namespaces, and `signalfd` for children.
//!
//! Only fork-like clones are offered (the child has its own copy of the memory), and only to a process that
//! proved to have one thread: after such a fork every lock of the child is in the state its one thread left it in,
//! so ordinary code may run there.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::thread::UnshareFlags;

/// Namespace flags that [`ForkOptions::namespaces`] accepts.
const NAMESPACES: u64 = (libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP) as u64;

/// `_NSIG` of the kernel.
const SIGNAL_MAX: i32 = 64;

const CLONE_PIDFD: u64 = 0x1000;
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Proof that the calling process had a single thread. It cannot leave its thread, and whoever holds it must not
/// start threads.
#[derive(Debug)]
pub struct SingleThreaded {
    _not_send: PhantomData<*const ()>,
}

impl SingleThreaded {
    /// Reads `/proc/self/status`. Fails with `EBUSY` if the process has more than one thread, or with the error of
    /// reading procfs.
    pub fn prove() -> io::Result<Self> {
        let status = std::fs::read_to_string("/proc/self/status")?;
        let threads = status
            .lines()
            .find_map(|line| line.strip_prefix("Threads:"))
            .and_then(|count| count.trim().parse::<u32>().ok());
        match threads {
            Some(1) => Ok(Self {
                _not_send: PhantomData,
            }),
            Some(_) => Err(io::Error::from_raw_os_error(libc::EBUSY)),
            None => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        }
    }
}

/// What the new process gets of its own.
#[derive(Debug, Default)]
pub struct ForkOptions<'a> {
    /// New namespaces, as `CLONE_NEW*` bits (time namespaces are entered by unsharing, see [`unshare_namespaces`]).
    pub namespaces: u64,
    /// The cgroup (v2) directory to be born in. Linux >= 5.7.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// The wanted PIDs, innermost namespace first (`set_tid`, Linux >= 5.5; needs CAP_CHECKPOINT_RESTORE or
    /// CAP_SYS_ADMIN over each of the PID namespaces).
    pub pids: &'a [i32],
}

/// Which side of a fork this is.
#[derive(Debug)]
pub enum Forked {
    /// In the new process.
    Child,
    /// In the caller.
    Parent {
        /// The child's PID in the caller's PID namespace.
        pid: i32,
        /// A descriptor of the child (close-on-exec).
        pidfd: OwnedFd,
    },
}

/// Forks by `clone3` (Linux >= 5.5). Signal dispositions other than "ignore" are reset in the child.
///
/// Errors: `EAGAIN` (a limit on processes), `EEXIST` (the wanted PID is taken), `EPERM`, `EINVAL` (flags other than
/// namespaces, or no such kernel feature), `ENOSPC` (namespaces nested too deeply or too many), `EBUSY` (the cgroup
/// has controllers enabled below it).
pub fn fork(_proof: &SingleThreaded, options: &ForkOptions<'_>) -> io::Result<Forked> {
    if options.namespaces & !NAMESPACES != 0 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let mut pidfd: i32 = -1;
    let mut args = linux_raw_sys::general::clone_args {
        flags: options.namespaces | CLONE_PIDFD | CLONE_CLEAR_SIGHAND,
        pidfd: (&raw mut pidfd) as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: libc::SIGCHLD as u64,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: if options.pids.is_empty() {
            0
        } else {
            options.pids.as_ptr() as u64
        },
        set_tid_size: options.pids.len() as u64,
        cgroup: 0,
    };
    if let Some(cgroup) = options.cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: `args` is a valid clone_args whose pointers (pidfd, set_tid) outlive the call. Without CLONE_VM and
    // with no stack given the child runs on a copy of this stack in a copy of this memory, like fork(2). The proof
    // says that there is no other thread whose locks could be left held in the child.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw mut args,
            size_of::<linux_raw_sys::general::clone_args>(),
        )
    };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Forked::Child),
        pid => {
            // SAFETY: the call succeeded with CLONE_PIDFD, so the kernel stored a new descriptor that we own.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Forked::Parent {
                pid: pid as i32,
                pidfd,
            })
        }
    }
}

/// `unshare` restricted to namespaces (man 2 unshare). `NEWTIME` and `NEWPID` concern only the children made later.
///
/// Errors: `EINVAL` for flags that are not namespaces, `EPERM`, `ENOSPC`.
pub fn unshare_namespaces(flags: UnshareFlags) -> io::Result<()> {
    let allowed = UnshareFlags::NEWNS
        | UnshareFlags::NEWUSER
        | UnshareFlags::NEWPID
        | UnshareFlags::NEWNET
        | UnshareFlags::NEWIPC
        | UnshareFlags::NEWUTS
        | UnshareFlags::NEWCGROUP
        | UnshareFlags::NEWTIME;
    if !allowed.contains(flags) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: unsharing namespaces does not touch memory nor the table of descriptors (CLONE_FILES is excluded).
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(io::Error::from)
}

/// Blocks SIGCHLD in this thread and returns a non-blocking, close-on-exec `signalfd` that becomes readable when a
/// child changes state. Records in it are to be read and thrown away: they coalesce, so ask `wait`.
pub fn child_signal_fd() -> io::Result<OwnedFd> {
    // SAFETY: a zeroed sigset_t is valid memory for sigemptyset, which initialises it.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is a valid sigset_t, SIGCHLD a valid signal number.
    unsafe {
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGCHLD);
    }
    // SAFETY: `set` is initialised; the old set is not asked for.
    if unsafe { libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: -1 asks for a new descriptor; `set` is initialised.
    let fd = unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: signalfd returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Every signal to its default disposition and an empty mask, as a program expects to find them.
pub fn reset_signals() -> io::Result<()> {
    // Past the C library, which keeps two of the real-time signals for itself; a starter may have left even those
    // ignored. All zeroes is SIG_DFL without flags in the kernel's own `struct sigaction`, whatever its layout.
    let default = [0u64; 8];
    for signal in 1..=SIGNAL_MAX {
        // SAFETY: the kernel reads its `struct sigaction` (at most 64 bytes) from `default` and stores nothing. KILL
        // and STOP are refused, which is ignored.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                std::ptr::null_mut::<u64>(),
                size_of::<u64>(),
            )
        };
    }
    unblock_signals()
}

/// Empties the signal mask of this thread. A mask survives exec.
pub fn unblock_signals() -> io::Result<()> {
    // SAFETY: a zeroed sigset_t is valid memory for sigemptyset, which initialises it.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is a valid sigset_t.
    unsafe { libc::sigemptyset(&mut set) };
    // SAFETY: `set` is initialised; the old set is not asked for.
    if unsafe { libc::sigprocmask(libc::SIG_SETMASK, &set, std::ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Closes every descriptor from `first` upwards except those to be kept (`close_range`, Linux >= 5.9).
///
/// For processes that start, or are about to hand over to another program: descriptors owned by values of this
/// program become invalid, so the caller must not use, or drop, any such value afterwards. Takes the proof so that no
/// other thread can be using them.
pub fn close_all_but(_proof: &SingleThreaded, first: u32, keep: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut kept: Vec<u32> = keep
        .iter()
        .map(|fd| fd.as_raw_fd() as u32)
        .filter(|fd| *fd >= first)
        .collect();
    kept.sort_unstable();
    kept.dedup();
    let mut from = first;
    for last in kept.iter().map(|fd| fd.checked_sub(1)).chain([Some(u32::MAX)]) {
        if let Some(last) = last
            && last >= from
        {
            // SAFETY: closing descriptors does not touch memory; the documented contract covers their owners.
            if unsafe { libc::syscall(libc::SYS_close_range, from, last, 0) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        from = last.map_or(1, |last| last.saturating_add(2));
    }
    Ok(())
}

/// Marks every descriptor from `first` upwards close-on-exec (`close_range` with `CLOSE_RANGE_CLOEXEC`, Linux >= 5.11).
pub fn close_from_on_exec(first: u32) -> io::Result<()> {
    const CLOSE_RANGE_CLOEXEC: u32 = 4;
    // SAFETY: only flags of descriptors change; no descriptor becomes invalid in this program.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, CLOSE_RANGE_CLOEXEC) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Ends the process at once (`_exit`): no destructors, no exit handlers. For children of [`fork`].
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit never returns and touches nothing.
    unsafe { libc::_exit(status) }
}

/// `kill` with any signal number, real-time ones included (rustix knows only named ones). A negative `pid` is a
/// process group.
///
/// Errors: `ESRCH`, `EPERM`, `EINVAL`.
pub fn send_signal(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: kill touches no memory of this process.
    if unsafe { libc::kill(pid, signal) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_process_with_threads_cannot_prove_the_contrary() {
        std::thread::scope(|scope| {
            let other = scope.spawn(std::thread::park);
            assert_eq!(
                SingleThreaded::prove().unwrap_err().raw_os_error(),
                Some(libc::EBUSY)
            );
            other.thread().unpark();
        });
    }

    #[test]
    fn only_namespaces_can_be_unshared() {
        let refused = unshare_namespaces(UnshareFlags::FILES).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EINVAL));
    }

    #[test]
    fn signals_reach_their_process_or_fail() {
        send_signal(std::process::id() as i32, 0).unwrap();
        assert_eq!(
            send_signal(i32::MAX, 0).unwrap_err().raw_os_error(),
            Some(libc::ESRCH)
        );
        assert_eq!(
            send_signal(1, 1000).unwrap_err().raw_os_error(),
            Some(libc::EINVAL)
        );
    }

    #[test]
    fn a_child_signal_fd_is_silent_without_children() {
        std::thread::spawn(|| {
            let fd = child_signal_fd().unwrap();
            let mut record = [0; 128];
            assert_eq!(
                rustix::io::read(fd.as_fd(), &mut record).unwrap_err(),
                rustix::io::Errno::AGAIN
            );
        })
        .join()
        .unwrap();
    }
}
