//! `kcmp(2)`: do two processes share a kernel object?
//!
//! The caller must be allowed to ptrace both processes (`PTRACE_MODE_READ_REALCREDS`). The order returned is an
//! obfuscated pointer order: stable until the next boot, and good for sorting, so that equal objects among n are
//! found with n log n calls.

use std::cmp::Ordering;
use std::io;

use rustix::process::Pid;

// include/uapi/linux/kcmp.h
const KCMP_FILE: i32 = 0;
const KCMP_VM: i32 = 1;
const KCMP_FILES: i32 = 2;
const KCMP_FS: i32 = 3;
const KCMP_SIGHAND: i32 = 4;
const KCMP_IO: i32 = 5;
const KCMP_SYSVSEM: i32 = 6;
const KCMP_EPOLL_TFD: i32 = 7;

/// A per-task resource that tasks may share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// The address space (`CLONE_VM`).
    Memory,
    /// The descriptor table (`CLONE_FILES`).
    Files,
    /// Root, working directory and umask (`CLONE_FS`).
    Fs,
    /// Signal handlers (`CLONE_SIGHAND`).
    SignalHandlers,
    /// The I/O context (`CLONE_IO`).
    Io,
    /// The System V semaphore undo list (`CLONE_SYSVSEM`).
    SemaphoreUndo,
}

impl Resource {
    fn code(self) -> i32 {
        match self {
            Resource::Memory => KCMP_VM,
            Resource::Files => KCMP_FILES,
            Resource::Fs => KCMP_FS,
            Resource::SignalHandlers => KCMP_SIGHAND,
            Resource::Io => KCMP_IO,
            Resource::SemaphoreUndo => KCMP_SYSVSEM,
        }
    }
}

/// One target of an epoll instance: the instance `epoll` in the process's table, the number `target` under which
/// a file was added, and `offset`, which counts among the targets added under that same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpollTarget {
    pub epoll: i32,
    pub target: i32,
    pub offset: u32,
}

#[repr(C)]
struct EpollSlot {
    efd: u32,
    tfd: u32,
    toff: u32,
}

fn order(result: libc::c_long) -> io::Result<Ordering> {
    match result {
        0 => Ok(Ordering::Equal),
        1 => Ok(Ordering::Less),
        2 => Ok(Ordering::Greater),
        // 3 means "different, no order available", which the kernel reserves and never returns for these types.
        3 => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "the kernel gives no order of these objects",
        )),
        _ => Err(io::Error::last_os_error()),
    }
}

fn kcmp(a: Pid, b: Pid, code: i32, x: libc::c_ulong, y: libc::c_ulong) -> io::Result<Ordering> {
    // SAFETY: kcmp only reads; its arguments are integers for every type but KCMP_EPOLL_TFD, which
    // `epoll_target` issues with a pointer to a live structure.
    order(unsafe {
        libc::syscall(
            libc::SYS_kcmp,
            a.as_raw_nonzero().get(),
            b.as_raw_nonzero().get(),
            code,
            x,
            y,
        )
    })
}

/// Compares a resource of two tasks (thread ids are allowed).
///
/// # Errors
/// `ESRCH` when a task is gone, `EPERM` without ptrace permission, `ENOSYS` without `CONFIG_KCMP`.
pub fn tasks(a: Pid, b: Pid, resource: Resource) -> io::Result<Ordering> {
    kcmp(a, b, resource.code(), 0, 0)
}

/// Compares the open file descriptions behind descriptor `fd_a` of task `a` and `fd_b` of task `b`.
///
/// # Errors
/// As [`tasks`]; `EBADF` when a descriptor is not open.
pub fn descriptions(a: Pid, fd_a: i32, b: Pid, fd_b: i32) -> io::Result<Ordering> {
    kcmp(a, b, KCMP_FILE, fd_a as libc::c_ulong, fd_b as libc::c_ulong)
}

/// Compares the open file description behind `fd` of task `a` with a target of an epoll instance of task `b`.
///
/// # Errors
/// As [`descriptions`]; `ENOENT` when the instance has no such target.
pub fn epoll_target(a: Pid, fd: i32, b: Pid, target: EpollTarget) -> io::Result<Ordering> {
    let slot = EpollSlot {
        efd: target.epoll as u32,
        tfd: target.target as u32,
        toff: target.offset,
    };
    kcmp(
        a,
        b,
        KCMP_EPOLL_TFD,
        fd as libc::c_ulong,
        &raw const slot as libc::c_ulong,
    )
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use rustix::event::{EventfdFlags, epoll, eventfd};

    use super::*;

    #[test]
    fn duplicates_are_one_description() {
        let me = rustix::process::getpid();
        let a = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let b = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let dup = rustix::io::fcntl_dupfd_cloexec(&a, 0).unwrap();
        assert_eq!(
            descriptions(me, a.as_raw_fd(), me, dup.as_raw_fd()).unwrap(),
            Ordering::Equal
        );
        let ab = descriptions(me, a.as_raw_fd(), me, b.as_raw_fd()).unwrap();
        let ba = descriptions(me, b.as_raw_fd(), me, a.as_raw_fd()).unwrap();
        assert_ne!(ab, Ordering::Equal);
        assert_eq!(ab, ba.reverse());
    }

    #[test]
    fn a_closed_descriptor_is_an_error() {
        let me = rustix::process::getpid();
        let error = descriptions(me, 0, me, 1_000_000).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
    }

    #[test]
    fn threads_share_the_table() {
        let me = rustix::process::getpid();
        let order = std::thread::spawn(move || tasks(me, rustix::thread::gettid(), Resource::Files)).join();
        assert_eq!(order.unwrap().unwrap(), Ordering::Equal);
    }

    #[test]
    fn epoll_targets_are_found_by_number() {
        let me = rustix::process::getpid();
        let set = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let a = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let b = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        epoll::add(&set, &a, epoll::EventData::new_u64(7), epoll::EventFlags::IN).unwrap();
        let target = EpollTarget {
            epoll: set.as_raw_fd(),
            target: a.as_raw_fd(),
            offset: 0,
        };
        assert_eq!(
            epoll_target(me, a.as_raw_fd(), me, target).unwrap(),
            Ordering::Equal
        );
        assert_ne!(
            epoll_target(me, b.as_raw_fd(), me, target).unwrap(),
            Ordering::Equal
        );
        let missing = EpollTarget {
            target: b.as_raw_fd(),
            ..target
        };
        assert_eq!(
            epoll_target(me, b.as_raw_fd(), me, missing)
                .unwrap_err()
                .raw_os_error(),
            Some(libc::ENOENT)
        );
    }
}
