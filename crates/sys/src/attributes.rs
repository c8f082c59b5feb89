//! What the kernel tells of any task by system call, as the raw bytes that setting it again takes.

use std::io;

use rustix::process::Pid;

/// Room for a CPU mask in bytes: 1,024 processors, as in glibc's `cpu_set_t`.
const AFFINITY_SIZE: usize = 128;

/// `sizeof(struct sched_attr)` of its first version.
const SCHED_ATTR_SIZE: usize = 48;

fn result(returned: libc::c_long) -> io::Result<usize> {
    usize::try_from(returned).map_err(|_| io::Error::last_os_error())
}

/// `sched_getaffinity(2)` of a thread.
pub fn affinity(tid: Pid) -> io::Result<Vec<u8>> {
    let mut mask = vec![0u8; AFFINITY_SIZE];
    let tid = tid.as_raw_nonzero().get();
    // SAFETY: the kernel writes at most as many bytes as the buffer has, and returns how many.
    let size =
        result(unsafe { libc::syscall(libc::SYS_sched_getaffinity, tid, mask.len(), mask.as_mut_ptr()) })?;
    mask.truncate(size);
    Ok(mask)
}

/// `sched_getattr(2)` of a thread: policy, nice value, priority.
pub fn scheduling(tid: Pid) -> io::Result<Vec<u8>> {
    let mut attributes = vec![0u8; SCHED_ATTR_SIZE];
    let (tid, flags) = (tid.as_raw_nonzero().get(), 0);
    // SAFETY: the kernel writes at most as many bytes as it is told the buffer has.
    result(unsafe {
        libc::syscall(
            libc::SYS_sched_getattr,
            tid,
            attributes.as_mut_ptr(),
            attributes.len(),
            flags,
        )
    })?;
    Ok(attributes)
}

/// `prlimit(2)` of a process: soft and hard limit (`struct rlimit64`) of the resource with this number.
pub fn limit(pid: Pid, resource: usize) -> io::Result<Vec<u8>> {
    let mut limit = [0u64; 2];
    let none: *const libc::rlimit64 = std::ptr::null();
    // SAFETY: a null pointer for the new limit changes nothing; the old one is written to a buffer of its size.
    result(unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            pid.as_raw_nonzero().get(),
            resource,
            none,
            limit.as_mut_ptr(),
        )
    })?;
    Ok(limit.map(u64::to_ne_bytes).concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_attributes_are_told() {
        let me = rustix::process::getpid();
        assert!(affinity(me).unwrap().iter().any(|&byte| byte != 0));
        // struct sched_attr starts with its size.
        assert_eq!(scheduling(me).unwrap()[..4], 48u32.to_ne_bytes());
        let files = limit(me, 7).unwrap();
        let soft = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        assert_eq!(files[..8], soft.unwrap_or(u64::MAX).to_ne_bytes());
        assert!(limit(me, 1000).is_err());
    }
}
