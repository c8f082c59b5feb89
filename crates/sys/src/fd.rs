//! Requests on open files that `rustix` does not offer: terminal and timer ioctls, signalfd, owners and locks of
//! open file descriptions.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// ioctls that report one `int`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IntRequest {
    /// `FIONREAD`, `TIOCINQ`, `SIOCINQ`: bytes to read.
    InputQueue,
    /// `TIOCOUTQ`, `SIOCOUTQ`: bytes written and not yet taken.
    OutputQueue,
    /// `TIOCGPTN`: the number of the pseudo terminal, asked of its master.
    PtyNumber,
    /// `TIOCGPTLCK`: is the slave still locked?
    PtyLocked,
    /// `TIOCGPKT`: is the master in packet mode?
    PtyPacket,
    /// `TIOCGEXCL`: is the terminal in exclusive mode?
    Exclusive,
    /// `TIOCGETD`: the line discipline.
    LineDiscipline,
    /// `SIOCATMARK`: is the next byte the urgent one?
    AtMark,
}

/// Runs an ioctl that reports one `int`.
///
/// # Errors
/// `ENOTTY` when the file does not know the request, and what the request itself fails with.
pub fn int_from_ioctl(fd: impl AsFd, request: IntRequest) -> io::Result<i32> {
    let code: libc::Ioctl = match request {
        IntRequest::InputQueue => libc::FIONREAD,
        IntRequest::OutputQueue => libc::TIOCOUTQ,
        IntRequest::PtyNumber => libc::TIOCGPTN,
        IntRequest::PtyLocked => libc::TIOCGPTLCK,
        IntRequest::PtyPacket => libc::TIOCGPKT,
        IntRequest::Exclusive => libc::TIOCGEXCL,
        IntRequest::LineDiscipline => libc::TIOCGETD,
        IntRequest::AtMark => 0x8905,
    };
    let mut value: libc::c_int = 0;
    // SAFETY: every request of the enumeration writes exactly one int to the address it is given.
    let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), code, &raw mut value) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(value)
    }
}

/// ioctls that take one `int` by address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IntSetting {
    /// `TIOCSPTLCK`: lock or unlock the slave, asked of the master.
    PtyLocked,
    /// `TIOCPKT`: packet mode of the master.
    PtyPacket,
    /// `TIOCSETD`: the line discipline.
    LineDiscipline,
}

/// Runs an ioctl that takes one `int` by address.
///
/// # Errors
/// As [`int_from_ioctl`].
pub fn int_to_ioctl(fd: impl AsFd, setting: IntSetting, value: i32) -> io::Result<()> {
    let code: libc::Ioctl = match setting {
        IntSetting::PtyLocked => libc::TIOCSPTLCK,
        IntSetting::PtyPacket => libc::TIOCPKT,
        IntSetting::LineDiscipline => libc::TIOCSETD,
    };
    // SAFETY: every setting of the enumeration reads exactly one int from the address it is given.
    let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), code, &raw const value) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Sets or clears exclusive mode of a terminal (`TIOCEXCL`, `TIOCNXCL`).
///
/// # Errors
/// `ENOTTY` when this is not a terminal.
pub fn set_exclusive(terminal: impl AsFd, exclusive: bool) -> io::Result<()> {
    let code = if exclusive { libc::TIOCEXCL } else { libc::TIOCNXCL };
    // SAFETY: neither request takes an argument.
    let result = unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), code) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// The complete settings of a terminal (`struct termios2`, include/uapi/asm-generic/termbits.h).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Termios {
    pub input: u32,
    pub output: u32,
    pub control: u32,
    pub local: u32,
    pub line: u8,
    pub characters: [u8; 19],
    pub input_speed: u32,
    pub output_speed: u32,
}

const TCGETS2: libc::Ioctl = 0x802c_542a_u32 as libc::Ioctl;
const TCSETS2: libc::Ioctl = 0x402c_542b_u32 as libc::Ioctl;
const TFD_IOC_SET_TICKS: libc::Ioctl = 0x4008_5400_u32 as libc::Ioctl;

/// Reads the settings of a terminal.
///
/// # Errors
/// `ENOTTY` when this is not a terminal, `EIO` when it was hung up.
pub fn termios(terminal: impl AsFd) -> io::Result<Termios> {
    let mut value = Termios::default();
    // SAFETY: TCGETS2 writes one termios2, whose layout `Termios` has, to a live and exclusively borrowed place.
    let result = unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), TCGETS2, &raw mut value) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(value)
    }
}

/// Sets a terminal at once, without waiting for output and without dropping input (`TCSETS2`).
///
/// A caller that is not in the terminal's foreground group is only stopped (SIGTTOU) when it is its own
/// controlling terminal.
///
/// # Errors
/// As [`termios`].
pub fn set_termios(terminal: impl AsFd, value: &Termios) -> io::Result<()> {
    // SAFETY: TCSETS2 reads one termios2, whose layout `Termios` has.
    let result = unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), TCSETS2, std::ptr::from_ref(value)) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Sets the number of expirations a timerfd reports at the next read (`TFD_IOC_SET_TICKS`, which needs
/// `CONFIG_CHECKPOINT_RESTORE`).
///
/// # Errors
/// `EINVAL` for zero ticks, `ENOTTY` without the option in the kernel.
pub fn set_timer_ticks(timer: impl AsFd, ticks: u64) -> io::Result<()> {
    // SAFETY: the request reads one u64 from the address it is given.
    let result = unsafe { libc::ioctl(timer.as_fd().as_raw_fd(), TFD_IOC_SET_TICKS, &raw const ticks) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn signalfd4(fd: i32, mask: u64, flags: i32) -> io::Result<i32> {
    // SAFETY: the kernel reads the 8 bytes of `mask`, the size of its own sigset_t.
    let result = unsafe { libc::syscall(libc::SYS_signalfd4, fd, &raw const mask, 8_usize, flags) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result as i32)
    }
}

/// Makes a signalfd (close-on-exec) for the signals of `mask`: bit n-1 is signal n.
///
/// # Errors
/// Those of signalfd(2).
pub fn signalfd(mask: u64) -> io::Result<OwnedFd> {
    let fd = signalfd4(-1, mask, libc::SFD_CLOEXEC)?;
    // SAFETY: the kernel has just made this descriptor and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Changes the signals an existing signalfd reports.
///
/// # Errors
/// `EINVAL` when this is not a signalfd.
pub fn set_signalfd_mask(signalfd: impl AsFd, mask: u64) -> io::Result<()> {
    signalfd4(signalfd.as_fd().as_raw_fd(), mask, 0).map(drop)
}

/// Who gets the signals of a descriptor in asynchronous mode (`struct f_owner_ex`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// 0: a thread, 1: a process, 2: a process group.
    pub kind: i32,
    /// Its number, in the caller's PID namespace; 0 when nobody (or nobody visible) is set.
    pub pid: i32,
}

const F_GETOWN_EX: i32 = 16;
const F_GETSIG: i32 = 11;

fn fcntl(fd: BorrowedFd<'_>, command: i32, argument: libc::c_ulong) -> io::Result<i32> {
    // SAFETY: called below with commands whose argument is an integer or the address of a live structure of the
    // type the command takes.
    let result = unsafe { libc::fcntl(fd.as_raw_fd(), command, argument) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Reads the owner of a description.
///
/// # Errors
/// `EBADF` for `O_PATH` descriptors.
pub fn owner(fd: impl AsFd) -> io::Result<Owner> {
    let mut value = Owner::default();
    fcntl(fd.as_fd(), F_GETOWN_EX, &raw mut value as libc::c_ulong)?;
    Ok(value)
}

/// The signal sent instead of SIGIO (0: SIGIO).
///
/// # Errors
/// `EBADF` for `O_PATH` descriptors.
pub fn owner_signal(fd: impl AsFd) -> io::Result<i32> {
    fcntl(fd.as_fd(), F_GETSIG, 0)
}

/// A byte range of a lock owned by an open file description; `len` 0 means to the end of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub start: i64,
    pub len: i64,
}

/// Takes an open-file-description lock (`F_OFD_SETLK`) without waiting.
///
/// # Errors
/// `EAGAIN` when another description holds a conflicting lock, `EBADF` when the access mode does not allow it.
pub fn lock_description(fd: impl AsFd, exclusive: bool, range: Range) -> io::Result<()> {
    ofd_lock(
        fd.as_fd(),
        if exclusive { libc::F_WRLCK } else { libc::F_RDLCK },
        range,
    )
}

/// Gives up an open-file-description lock.
///
/// # Errors
/// Those of fcntl(2).
pub fn unlock_description(fd: impl AsFd, range: Range) -> io::Result<()> {
    ofd_lock(fd.as_fd(), libc::F_UNLCK, range)
}

fn ofd_lock(fd: BorrowedFd<'_>, kind: libc::c_int, range: Range) -> io::Result<()> {
    let lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: range.start,
        l_len: range.len,
        l_pid: 0,
    };
    fcntl(fd, libc::F_OFD_SETLK, &raw const lock as libc::c_ulong).map(drop)
}

/// Gives this thread a root and a working directory of its own (`unshare(CLONE_FS)`), which it can then change
/// without changing those of other threads.
///
/// # Errors
/// `ENOMEM`.
pub fn unshare_directories() -> io::Result<()> {
    // SAFETY: neither memory nor the table of descriptors is touched; only path lookups of this thread change.
    let result = unsafe { libc::unshare(libc::CLONE_FS) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rustix::pty::{OpenptFlags, openpt};
    use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};

    use super::*;

    #[test]
    fn a_terminal_gives_back_its_settings() {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        assert_eq!(int_from_ioctl(&master, IntRequest::PtyLocked).unwrap(), 1);
        int_to_ioctl(&master, IntSetting::PtyLocked, 0).unwrap();
        assert_eq!(int_from_ioctl(&master, IntRequest::PtyLocked).unwrap(), 0);
        let before = termios(&master).unwrap();
        let mut changed = before;
        changed.local ^= libc::ECHO;
        changed.characters[libc::VINTR] = 7;
        set_termios(&master, &changed).unwrap();
        assert_eq!(termios(&master).unwrap(), changed);
    }

    #[test]
    fn ticks_are_read_back() {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK).unwrap();
        set_timer_ticks(&timer, 42).unwrap();
        let mut value = [0; 8];
        rustix::io::read(&timer, &mut value).unwrap();
        assert_eq!(u64::from_ne_bytes(value), 42);
    }

    #[test]
    fn a_signalfd_changes_its_mask() {
        let fd = signalfd(1 << (libc::SIGUSR1 - 1)).unwrap();
        set_signalfd_mask(&fd, 1 << (libc::SIGUSR2 - 1)).unwrap();
        let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).unwrap();
        assert!(text.contains("sigmask:\t0000000000000800"), "{text}");
    }

    #[test]
    fn nobody_owns_what_is_new() {
        let (read, _write) = rustix::pipe::pipe().unwrap();
        assert_eq!(owner(&read).unwrap().pid, 0);
        assert_eq!(owner_signal(&read).unwrap(), 0);
    }

    #[test]
    fn description_locks_exclude_each_other() {
        let path = std::env::temp_dir().join(format!("ofd-{}", std::process::id()));
        let open = || {
            std::fs::OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
        };
        let (a, b) = (open().unwrap(), open().unwrap());
        std::fs::remove_file(&path).unwrap();
        let range = Range { start: 0, len: 10 };
        lock_description(&a, true, range).unwrap();
        assert!(lock_description(&b, true, range).is_err());
        unlock_description(&a, range).unwrap();
        lock_description(&b, true, range).unwrap();
    }
}
