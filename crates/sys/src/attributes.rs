//! What the kernel tells of any task by system call, as the raw bytes that setting it again takes. Set from outside, by
//! who may: programs can lower what they cannot raise again.

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

/// `sched_setaffinity(2)`.
pub fn set_affinity(tid: Pid, mask: &[u8]) -> io::Result<()> {
    let tid = tid.as_raw_nonzero().get();
    // SAFETY: the kernel reads as many bytes as the slice has.
    result(unsafe { libc::syscall(libc::SYS_sched_setaffinity, tid, mask.len(), mask.as_ptr()) }).map(drop)
}

/// `sched_setattr(2)`: what [`scheduling`] has told.
pub fn set_scheduling(tid: Pid, attributes: &[u8]) -> io::Result<()> {
    // The kernel reads as much as the structure's own first field says.
    let stated = attributes
        .first_chunk()
        .map_or(0, |bytes| u32::from_ne_bytes(*bytes));
    if stated as usize > attributes.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let tid = tid.as_raw_nonzero().get();
    // SAFETY: the kernel reads no more bytes than the slice has, which was checked above.
    result(unsafe { libc::syscall(libc::SYS_sched_setattr, tid, attributes.as_ptr(), 0) }).map(drop)
}

/// `ioprio_get(2)` of a thread: class and priority of its input and output.
pub fn io_priority(tid: Pid) -> io::Result<i32> {
    const WHO_PROCESS: i32 = 1;
    // SAFETY: no pointers.
    let priority =
        result(unsafe { libc::syscall(libc::SYS_ioprio_get, WHO_PROCESS, tid.as_raw_nonzero().get()) })?;
    i32::try_from(priority).map_err(io::Error::other)
}

/// `ioprio_set(2)` of a thread.
pub fn set_io_priority(tid: Pid, priority: i32) -> io::Result<()> {
    const WHO_PROCESS: i32 = 1;
    let tid = tid.as_raw_nonzero().get();
    // SAFETY: no pointers.
    result(unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, tid, priority) }).map(drop)
}

/// `prlimit(2)`: what [`limit`] has told. Raising a hard limit takes `CAP_SYS_RESOURCE`.
pub fn set_limit(pid: Pid, resource: usize, limit: &[u8; 16]) -> io::Result<()> {
    let none: *mut libc::rlimit64 = std::ptr::null_mut();
    // SAFETY: the kernel reads a `struct rlimit64`, 16 bytes, and writes nothing.
    result(unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            pid.as_raw_nonzero().get(),
            resource,
            limit.as_ptr(),
            none,
        )
    })
    .map(drop)
}

/// Lets all other threads go before the calling one, both at the processors and at the disk. It still gets a share of
/// them: others may wait for a lock that it holds.
pub fn step_back() -> io::Result<()> {
    const SCHED_BATCH: u32 = 3;
    const NICE: i32 = 10;
    // The best-effort class, its lowest priority.
    const LAST: i32 = (2 << 13) | 7;
    let me = rustix::thread::gettid();
    let mut attributes = scheduling(me)?;
    // struct sched_attr: size, policy, flags (64 bits), nice.
    attributes[4..8].copy_from_slice(&SCHED_BATCH.to_ne_bytes());
    attributes[16..20].copy_from_slice(&NICE.to_ne_bytes());
    set_scheduling(me, &attributes)?;
    set_io_priority(me, LAST)
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
        assert!(io_priority(me).is_ok());
    }

    #[test]
    fn a_thread_steps_back_alone() {
        let policy = |attributes: Vec<u8>| (attributes[4], attributes[16]);
        let before = scheduling(rustix::thread::gettid()).unwrap();
        let other = std::thread::spawn(|| {
            step_back().unwrap();
            scheduling(rustix::thread::gettid()).unwrap()
        });
        assert_eq!(policy(other.join().unwrap()), (3, 10));
        assert_eq!(scheduling(rustix::thread::gettid()).unwrap(), before);
    }

    #[test]
    fn attributes_of_another_are_set() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let pid = Pid::from_child(&child);
        let set = || -> io::Result<()> {
            set_affinity(pid, &affinity(pid)?)?;
            let mut attributes = scheduling(pid)?;
            // struct sched_attr: size, policy, flags (64 bits), nice.
            attributes[16..20].copy_from_slice(&7i32.to_ne_bytes());
            set_scheduling(pid, &attributes)?;
            assert_eq!(scheduling(pid)?[16..20], 7i32.to_ne_bytes());
            let low = [5u64.to_ne_bytes(), 6u64.to_ne_bytes()].concat();
            set_limit(pid, 7, low.first_chunk().unwrap())?;
            assert_eq!(limit(pid, 7)?, low);
            set_io_priority(pid, (2 << 13) | 6)?;
            assert_eq!(io_priority(pid)?, (2 << 13) | 6);
            Ok(())
        };
        let done = set();
        assert!(set_scheduling(pid, &[48, 0, 0, 0]).is_err());
        child.kill().unwrap();
        child.wait().unwrap();
        done.unwrap();
    }
}
