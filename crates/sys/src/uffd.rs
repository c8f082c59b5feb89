//! `userfaultfd(2)` in asynchronous write-protect mode: the kernel notes which pages were written and resolves the
//! faults by itself, so nobody has to answer them (`UFFD_FEATURE_WP_ASYNC`, kernel 6.7).

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use linux_raw_sys::general as k;

/// Flag of `userfaultfd(2)`: only faults of user code; needs no privilege.
pub const USER_MODE_ONLY: u64 = k::UFFD_USER_MODE_ONLY as u64;

// The kernel's headers build these with macros that bindings do not carry over: _IOWR(0xAA, nr, type).
const UFFDIO_API: u64 = ioctl_number(3, k::_UFFDIO_API, size_of::<k::uffdio_api>());
const UFFDIO_REGISTER: u64 = ioctl_number(3, k::_UFFDIO_REGISTER, size_of::<k::uffdio_register>());
const UFFDIO_COPY: u64 = ioctl_number(3, k::_UFFDIO_COPY, size_of::<k::uffdio_copy>());
const UFFDIO_UNREGISTER: u64 = ioctl_number(2, k::_UFFDIO_UNREGISTER, size_of::<k::uffdio_range>());

const fn ioctl_number(direction: u64, number: u32, size: usize) -> u64 {
    direction << 30 | (size as u64) << 16 | (k::UFFDIO as u64) << 8 | number as u64
}

fn ioctl<T>(fd: &impl AsFd, request: u64, argument: &mut T) -> io::Result<()> {
    // SAFETY: each caller passes the structure that belongs to `request`; it is borrowed for the call.
    let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request, std::ptr::from_mut(argument)) };
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Creates a userfaultfd for the *calling* process (`UFFD_USER_MODE_ONLY`, close-on-exec).
pub fn create() -> io::Result<OwnedFd> {
    use std::os::fd::FromRawFd;
    let flags = libc::c_long::from(libc::O_CLOEXEC) | k::UFFD_USER_MODE_ONLY as libc::c_long;
    // SAFETY: the call takes one number and returns a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
    let fd = i32::try_from(fd).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just returned this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Switches on asynchronous write-protect with markers for pages that are not there yet. Once per descriptor.
pub fn enable_async_write_protect(fd: &impl AsFd) -> io::Result<()> {
    let mut api = k::uffdio_api {
        api: u64::from(k::UFFD_API),
        features: u64::from(k::UFFD_FEATURE_WP_ASYNC | k::UFFD_FEATURE_WP_UNPOPULATED),
        ioctls: 0,
    };
    ioctl(fd, UFFDIO_API, &mut api)
}

/// Registers every mapping in `start .. start + length` (bytes, page-aligned). Gaps are allowed, as long as one
/// mapping is there; mappings that are already registered with this descriptor stay as they are. Fails with `EPERM`
/// if a mapping in the range may never be written, `EBUSY` if another userfaultfd has one of them.
pub fn register_write_protect(fd: &impl AsFd, start: u64, length: u64) -> io::Result<()> {
    let mut register = k::uffdio_register {
        range: k::uffdio_range { start, len: length },
        mode: u64::from(k::UFFDIO_REGISTER_MODE_WP),
        ioctls: 0,
    };
    ioctl(fd, UFFDIO_REGISTER, &mut register)
}

/// Puts pages into registered anonymous memory where nothing is yet, write-protected: `(address, page)`, in order.
/// That spares the fault of each page and its clearing. Pages that follow each other here as they do there are put by
/// one call. Returns how many were put before the first that could not be.
pub fn put_pages<const PAGE: usize>(fd: &impl AsFd, pages: &[(u64, &[u8; PAGE])]) -> usize {
    let size = PAGE as u64;
    let place = |page: &(u64, &[u8; PAGE])| (page.0, page.1.as_ptr().addr() as u64);
    let mut done = 0;
    for run in pages.chunk_by(|one, two| {
        let (one, two) = (place(one), place(two));
        one.0 + size == two.0 && one.1 + size == two.1
    }) {
        let (start, from) = place(&run[0]);
        let mut put = 0;
        while put < run.len() {
            let mut copy = k::uffdio_copy {
                dst: start + put as u64 * size,
                src: from + put as u64 * size,
                len: (run.len() - put) as u64 * size,
                mode: u64::from(k::UFFDIO_COPY_MODE_WP),
                copy: 0,
            };
            // The kernel only reads the source, which is borrowed: pages that lie one behind the other.
            let result = ioctl(fd, UFFDIO_COPY, &mut copy);
            let copied = usize::try_from(copy.copy).unwrap_or(0) / PAGE;
            put += copied;
            if result.is_err() && copied == 0 {
                return done + put;
            }
        }
        done += run.len();
    }
    done
}

/// Undoes [`register_write_protect`] for a range.
pub fn unregister(fd: &impl AsFd, start: u64, length: u64) -> io::Result<()> {
    ioctl(fd, UFFDIO_UNREGISTER, &mut k::uffdio_range { start, len: length })
}
