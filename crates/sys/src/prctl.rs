//! Operations on the calling process that rustix does not offer: seccomp filters.

use std::io;

/// One instruction of a classic BPF program (`struct sock_filter` of linux/filter.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct FilterInstruction {
    /// Operation.
    pub code: u16,
    /// Instructions to skip if a test holds.
    pub jt: u8,
    /// Instructions to skip if it does not.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

const _: () = assert!(size_of::<FilterInstruction>() == size_of::<libc::sock_filter>());
const _: () = assert!(align_of::<FilterInstruction>() == align_of::<libc::sock_filter>());

/// Installs a seccomp filter for the calling thread and its future children, for good (man 2 seccomp,
/// `SECCOMP_SET_MODE_FILTER`). The kernel checks the program.
///
/// Errors: `EACCES` without `no_new_privs` and CAP_SYS_ADMIN, `EINVAL` for a program that is empty, too long or not
/// valid, `ENOMEM` for too many filters.
pub fn install_filter(program: &[FilterInstruction]) -> io::Result<()> {
    let length = u16::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let header = libc::sock_fprog {
        len: length,
        filter: program.as_ptr().cast::<libc::sock_filter>().cast_mut(),
    };
    // SAFETY: `header` points to `length` instructions of the kernel's layout (asserted above), which the kernel only
    // reads, during the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0,
            &raw const header,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_filter_is_refused() {
        assert_eq!(
            install_filter(&[]).unwrap_err().raw_os_error(),
            Some(libc::EINVAL)
        );
    }
}
