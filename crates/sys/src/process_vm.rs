//! Reading and writing the memory of another process with `process_vm_readv(2)` and `process_vm_writev(2)`.
//!
//! Both respect the protection of the pages: to write into a read-only mapping use `/proc/PID/mem`.

use std::ffi::c_void;
use std::io;

use rustix::process::Pid;

/// Most ranges the kernel takes in one call (`UIO_MAXIOV`).
const MAX_RANGES: usize = 1024;

fn check(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Reads `buffer.len()` bytes at `address`. Returns how many could be read; fewer if a page is missing.
pub fn read(pid: Pid, address: u64, buffer: &mut [u8]) -> io::Result<usize> {
    read_ranges(pid, &[(address, buffer.len())], buffer)
}

/// Reads exactly `buffer.len()` bytes at `address`; `EFAULT` if a page is missing.
pub fn read_exact(pid: Pid, address: u64, buffer: &mut [u8]) -> io::Result<()> {
    if read(pid, address, buffer)? == buffer.len() {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::EFAULT))
    }
}

/// Reads several ranges (`(address, length)`) one after the other into `buffer`. Returns how many bytes were read:
/// fewer than asked if a page is missing or `buffer` is too small.
pub fn read_ranges(pid: Pid, ranges: &[(u64, usize)], buffer: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    for ranges in ranges.chunks(MAX_RANGES) {
        let remote: Vec<libc::iovec> = ranges
            .iter()
            .map(|&(start, length)| vector(start, length))
            .collect();
        let wanted: usize = ranges.iter().map(|range| range.1).sum();
        let room = &mut buffer[done..];
        let local = libc::iovec {
            iov_base: room.as_mut_ptr().cast(),
            iov_len: room.len().min(wanted),
        };
        let raw = pid.as_raw_nonzero().get();
        // SAFETY: `local` describes memory of ours that is writable and borrowed for the call; `remote` holds
        // addresses of the other process, which the kernel validates.
        let got =
            check(unsafe { libc::process_vm_readv(raw, &local, 1, remote.as_ptr(), remote.len() as u64, 0) });
        match got {
            Ok(got) => {
                done += got;
                if got < wanted {
                    break;
                }
            }
            Err(_) if done > 0 => break,
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Writes `bytes` at `address`. Returns how many were written; fewer if a page is missing or read-only.
pub fn write(pid: Pid, address: u64, bytes: &[u8]) -> io::Result<usize> {
    write_ranges(pid, &[(address, bytes)])
}

/// Writes all of `bytes` at `address`; `EFAULT` if a page is missing or read-only.
pub fn write_exact(pid: Pid, address: u64, bytes: &[u8]) -> io::Result<()> {
    if write(pid, address, bytes)? == bytes.len() {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::EFAULT))
    }
}

/// Writes several pieces, in order. Returns how many bytes were written before the first page that could not be.
pub fn write_ranges(pid: Pid, pieces: &[(u64, &[u8])]) -> io::Result<usize> {
    let mut done = 0;
    for pieces in pieces.chunks(MAX_RANGES) {
        let remote: Vec<libc::iovec> = pieces
            .iter()
            .map(|&(start, bytes)| vector(start, bytes.len()))
            .collect();
        let local: Vec<libc::iovec> = pieces
            .iter()
            .map(|(_, bytes)| libc::iovec {
                iov_base: bytes.as_ptr() as *mut c_void,
                iov_len: bytes.len(),
            })
            .collect();
        let wanted: usize = pieces.iter().map(|piece| piece.1.len()).sum();
        let (raw, count) = (pid.as_raw_nonzero().get(), pieces.len() as u64);
        // SAFETY: `local` describes slices borrowed for the call, which the kernel only reads; `remote` holds
        // addresses of the other process, which the kernel validates.
        let got =
            check(unsafe { libc::process_vm_writev(raw, local.as_ptr(), count, remote.as_ptr(), count, 0) });
        match got {
            Ok(got) => {
                done += got;
                if got < wanted {
                    break;
                }
            }
            Err(_) if done > 0 => break,
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Soft and hard limit of another process for the resource with the kernel's number `resource` (`RLIMIT_*`), without
/// changing them; `None` is no limit.
pub fn resource_limits(pid: Pid, resource: u32) -> io::Result<(Option<u64>, Option<u64>)> {
    let mut limits = libc::rlimit64 {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: with a null new limit the call only writes `limits`, which lives across it.
    let result = unsafe {
        libc::prlimit64(
            pid.as_raw_nonzero().get(),
            resource,
            std::ptr::null(),
            &raw mut limits,
        )
    };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    let known = |value: u64| (value != libc::RLIM64_INFINITY).then_some(value);
    Ok((known(limits.rlim_cur), known(limits.rlim_max)))
}

fn vector(address: u64, length: usize) -> libc::iovec {
    libc::iovec {
        iov_base: std::ptr::without_provenance_mut(address as usize),
        iov_len: length,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_memory_is_read_and_written_through_the_kernel() {
        let me = rustix::process::getpid();
        let cell = std::cell::Cell::new([1u8, 2, 3, 4]);
        let address = cell.as_ptr() as u64;
        let mut got = [0u8; 4];
        read_exact(me, address, &mut got).unwrap();
        assert_eq!(got, [1, 2, 3, 4]);
        write_exact(me, address + 1, &[9, 8]).unwrap();
        assert_eq!(cell.get(), [1, 9, 8, 4]);
        let mut twice = [0u8; 3];
        assert_eq!(
            read_ranges(me, &[(address, 1), (address + 2, 2)], &mut twice).unwrap(),
            3
        );
        assert_eq!(twice, [1, 8, 4]);
    }

    #[test]
    fn more_ranges_than_one_call_takes() {
        let me = rustix::process::getpid();
        let source: Vec<u8> = (0..3000u32).map(|n| n as u8).collect();
        let ranges: Vec<_> = (0..3000).map(|n| (source.as_ptr() as u64 + n, 1)).collect();
        let mut copy = vec![0u8; 3000];
        assert_eq!(read_ranges(me, &ranges, &mut copy).unwrap(), 3000);
        assert_eq!(copy, source);
    }

    #[test]
    fn a_missing_page_is_an_error() {
        let error = read_exact(rustix::process::getpid(), 8, &mut [0u8; 4]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EFAULT));
    }
}
