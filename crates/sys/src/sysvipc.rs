//! System V IPC of the calling thread's namespace: shared memory, semaphores and message queues, by their ids.

use std::io;

/// Who may use an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permissions {
    pub key: i32,
    pub owner: (u32, u32),
    pub creator: (u32, u32),
    /// With the flags of segments (`SHM_DEST`, `SHM_LOCKED`).
    pub mode: u32,
}

impl Permissions {
    fn of(raw: &libc::ipc_perm) -> Self {
        Self {
            key: raw.__key,
            owner: (raw.uid, raw.gid),
            creator: (raw.cuid, raw.cgid),
            mode: raw.mode.into(),
        }
    }

    fn put(&self, raw: &mut libc::ipc_perm) -> io::Result<()> {
        (raw.uid, raw.gid) = self.owner;
        let mode = self.mode & 0o777;
        raw.mode = mode.try_into().map_err(|_| io::ErrorKind::InvalidInput)?;
        Ok(())
    }
}

fn check(result: libc::c_int) -> io::Result<i32> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// A shared memory segment.
#[derive(Clone, Copy, Debug)]
pub struct SegmentStatus {
    pub permissions: Permissions,
    pub size: u64,
    pub creator: i32,
    pub attached: u64,
}

fn segment_ds(id: i32) -> io::Result<libc::shmid_ds> {
    // SAFETY: plain data, for which all zeros is a value.
    let mut raw: libc::shmid_ds = unsafe { std::mem::zeroed() };
    // SAFETY: `raw` is live and of the type that IPC_STAT fills.
    check(unsafe { libc::shmctl(id, libc::IPC_STAT, &raw mut raw) })?;
    Ok(raw)
}

/// What the kernel says of a segment.
///
/// # Errors
/// `EINVAL` when there is none with this id.
pub fn segment(id: i32) -> io::Result<SegmentStatus> {
    let raw = segment_ds(id)?;
    Ok(SegmentStatus {
        permissions: Permissions::of(&raw.shm_perm),
        size: raw.shm_segsz as u64,
        creator: raw.shm_cpid,
        attached: raw.shm_nattch,
    })
}

/// Makes a segment that nobody may use yet; gives its id.
///
/// # Errors
/// `EEXIST` when the key is taken, `EINVAL` or `ENOSPC` beyond the limits.
pub fn make_segment(key: i32, size: u64) -> io::Result<i32> {
    let size = usize::try_from(size).map_err(|_| io::ErrorKind::InvalidInput)?;
    let flags = libc::IPC_CREAT | libc::IPC_EXCL;
    // SAFETY: integers only.
    check(unsafe { libc::shmget(key, size, flags) })
}

/// Sets owner and mode of a segment.
///
/// # Errors
/// `EPERM` when the caller may not.
pub fn change_segment(id: i32, to: &Permissions) -> io::Result<()> {
    let mut raw = segment_ds(id)?;
    to.put(&mut raw.shm_perm)?;
    // SAFETY: `raw` is live and of the type that IPC_SET reads.
    check(unsafe { libc::shmctl(id, libc::IPC_SET, &raw mut raw) }).map(drop)
}

fn command_segment(id: i32, command: i32) -> io::Result<()> {
    // SAFETY: called below with commands that take no structure.
    check(unsafe { libc::shmctl(id, command, std::ptr::null_mut()) }).map(drop)
}

/// Removes a segment, once nobody has it attached any more.
///
/// # Errors
/// `EINVAL` when there is none with this id.
pub fn remove_segment(id: i32) -> io::Result<()> {
    command_segment(id, libc::IPC_RMID)
}

/// Keeps a segment in memory, or not any more.
///
/// # Errors
/// `EPERM` or `ENOMEM` beyond the limit of locked memory.
pub fn lock_segment(id: i32, locked: bool) -> io::Result<()> {
    command_segment(id, if locked { libc::SHM_LOCK } else { libc::SHM_UNLOCK })
}

/// A segment attached to this process; detached when dropped.
#[derive(Debug)]
pub struct Attached(usize);

impl Attached {
    /// Attaches a segment wherever there is room.
    ///
    /// # Errors
    /// `EACCES` when the caller may not, `ENOMEM` when there is no room.
    pub fn new(id: i32) -> io::Result<Self> {
        // SAFETY: the kernel chooses a free range; nothing there is referred to.
        let address = unsafe { libc::shmat(id, std::ptr::null(), 0) } as usize;
        if address == usize::MAX {
            return Err(io::Error::last_os_error());
        }
        Ok(Self(address))
    }

    /// Where it begins.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.0 as u64
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // SAFETY: attached at this address by `new`, and nobody was given a reference into it.
        unsafe { libc::shmdt(self.0 as *const libc::c_void) };
    }
}

/// A set of semaphores.
#[derive(Clone, Copy, Debug)]
pub struct SetStatus {
    pub permissions: Permissions,
    pub count: u16,
    /// When `semop` last did something, in seconds; 0 for never.
    pub operated: i64,
}

fn set_ds(id: i32) -> io::Result<libc::semid_ds> {
    // SAFETY: plain data, for which all zeros is a value.
    let mut raw: libc::semid_ds = unsafe { std::mem::zeroed() };
    // SAFETY: `raw` is live and of the type that IPC_STAT fills.
    check(unsafe { libc::semctl(id, 0, libc::IPC_STAT, &raw mut raw) })?;
    Ok(raw)
}

/// What the kernel says of a set.
///
/// # Errors
/// `EINVAL` when there is none with this id.
pub fn set(id: i32) -> io::Result<SetStatus> {
    let raw = set_ds(id)?;
    Ok(SetStatus {
        permissions: Permissions::of(&raw.sem_perm),
        count: u16::try_from(raw.sem_nsems).map_err(|_| io::ErrorKind::InvalidData)?,
        operated: raw.sem_otime,
    })
}

/// Makes a set, all zero, that nobody may use yet; gives its id.
///
/// # Errors
/// `EEXIST` when the key is taken, `EINVAL` or `ENOSPC` beyond the limits.
pub fn make_set(key: i32, count: u16) -> io::Result<i32> {
    let flags = libc::IPC_CREAT | libc::IPC_EXCL;
    // SAFETY: integers only.
    check(unsafe { libc::semget(key, count.into(), flags) })
}

/// Sets owner and mode of a set.
///
/// # Errors
/// `EPERM` when the caller may not.
pub fn change_set(id: i32, to: &Permissions) -> io::Result<()> {
    let mut raw = set_ds(id)?;
    to.put(&mut raw.sem_perm)?;
    // SAFETY: `raw` is live and of the type that IPC_SET reads.
    check(unsafe { libc::semctl(id, 0, libc::IPC_SET, &raw mut raw) }).map(drop)
}

/// Removes a set.
///
/// # Errors
/// `EINVAL` when there is none with this id.
pub fn remove_set(id: i32) -> io::Result<()> {
    // SAFETY: the command takes no argument.
    check(unsafe { libc::semctl(id, 0, libc::IPC_RMID) }).map(drop)
}

/// Value of a semaphore, and who changed it last (0: nobody visible).
///
/// # Errors
/// `EINVAL` when there is none.
pub fn semaphore(id: i32, number: u16) -> io::Result<(u16, i32)> {
    let ask = |command: i32| {
        // SAFETY: these commands take no argument.
        check(unsafe { libc::semctl(id, number.into(), command) })
    };
    let value = u16::try_from(ask(libc::GETVAL)?).map_err(|_| io::ErrorKind::InvalidData)?;
    Ok((value, ask(libc::GETPID)?))
}

/// Sets the value of a semaphore, without counting as an operation.
///
/// # Errors
/// `ERANGE` for what is no value.
pub fn set_semaphore(id: i32, number: u16, value: u16) -> io::Result<()> {
    // SAFETY: the command takes an integer.
    let result = unsafe { libc::semctl(id, number.into(), libc::SETVAL, libc::c_int::from(value)) };
    check(result).map(drop)
}

/// One operation of `semop`: `struct sembuf`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    pub number: u16,
    pub by: i16,
    pub flags: i16,
}

impl Operation {
    /// As the kernel reads it.
    #[must_use]
    pub fn bytes(self) -> [u8; 6] {
        let [a, b] = self.number.to_ne_bytes();
        let [c, d] = self.by.to_ne_bytes();
        let [e, f] = self.flags.to_ne_bytes();
        [a, b, c, d, e, f]
    }
}

/// Does all operations at once, or none.
///
/// # Errors
/// `EAGAIN` when it would wait and must not, `ERANGE` beyond the values there are.
pub fn operate(id: i32, operations: &[Operation]) -> io::Result<()> {
    // SAFETY: `Operation` is laid out like `struct sembuf`, and the kernel only reads as many as it is told of.
    let result = unsafe { libc::semop(id, operations.as_ptr().cast_mut().cast(), operations.len()) };
    check(result).map(drop)
}

/// A message queue.
#[derive(Clone, Copy, Debug)]
pub struct QueueStatus {
    pub permissions: Permissions,
    pub messages: u64,
    /// How many bytes it may hold.
    pub room: u64,
    pub last_sender: i32,
    pub last_receiver: i32,
}

fn queue_ds(id: i32) -> io::Result<libc::msqid_ds> {
    // SAFETY: plain data, for which all zeros is a value.
    let mut raw: libc::msqid_ds = unsafe { std::mem::zeroed() };
    // SAFETY: `raw` is live and of the type that IPC_STAT fills.
    check(unsafe { libc::msgctl(id, libc::IPC_STAT, &raw mut raw) })?;
    Ok(raw)
}

/// What the kernel says of a queue.
///
/// # Errors
/// `EINVAL` when there is none with this id.
pub fn queue(id: i32) -> io::Result<QueueStatus> {
    let raw = queue_ds(id)?;
    Ok(QueueStatus {
        permissions: Permissions::of(&raw.msg_perm),
        messages: raw.msg_qnum,
        room: raw.msg_qbytes,
        last_sender: raw.msg_lspid,
        last_receiver: raw.msg_lrpid,
    })
}

/// Makes a queue that nobody may use yet; gives its id.
///
/// # Errors
/// `EEXIST` when the key is taken, `ENOSPC` beyond the limits.
pub fn make_queue(key: i32) -> io::Result<i32> {
    let flags = libc::IPC_CREAT | libc::IPC_EXCL;
    // SAFETY: integers only.
    check(unsafe { libc::msgget(key, flags) })
}

/// Sets owner, mode and room of a queue.
///
/// # Errors
/// `EPERM` when the caller may not.
pub fn change_queue(id: i32, to: &Permissions, room: u64) -> io::Result<()> {
    let mut raw = queue_ds(id)?;
    to.put(&mut raw.msg_perm)?;
    raw.msg_qbytes = room;
    // SAFETY: `raw` is live and of the type that IPC_SET reads.
    check(unsafe { libc::msgctl(id, libc::IPC_SET, &raw mut raw) }).map(drop)
}

/// Removes a queue.
///
/// # Errors
/// `EINVAL` when there is none with this id.
pub fn remove_queue(id: i32) -> io::Result<()> {
    // SAFETY: the command takes no structure.
    check(unsafe { libc::msgctl(id, libc::IPC_RMID, std::ptr::null_mut()) }).map(drop)
}

/// A message with its type in front, as `msgsnd` takes it and `msgrcv` gives it.
#[must_use]
pub fn message(kind: i64, text: &[u8]) -> Vec<u8> {
    [&kind.to_ne_bytes(), text].concat()
}

const KIND: usize = size_of::<i64>();

fn receive(id: i32, room: usize, which: i64, flags: i32) -> io::Result<(i64, Vec<u8>)> {
    let mut buffer = vec![0; KIND + room];
    // SAFETY: the buffer has room for the type and `room` bytes of text.
    let got = unsafe { libc::msgrcv(id, buffer.as_mut_ptr().cast(), room, which, flags) };
    let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
    let (kind, text) = buffer.split_at(KIND);
    let kind = kind.try_into().map_or(0, i64::from_ne_bytes);
    Ok((kind, text[..got].to_vec()))
}

/// A copy of the message at `place`, which stays in the queue.
///
/// # Errors
/// `ENOMSG` when there are not so many, `ENOSYS` without `CONFIG_CHECKPOINT_RESTORE`.
pub fn copy_message(id: i32, place: u64) -> io::Result<(i64, Vec<u8>)> {
    const MSG_COPY: i32 = 0o40000;
    let which = i64::try_from(place).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut room = 8192;
    loop {
        match receive(id, room, which, MSG_COPY | libc::IPC_NOWAIT) {
            Err(e) if e.raw_os_error() == Some(libc::E2BIG) && room < 1 << 30 => room *= 4,
            other => return other,
        }
    }
}

/// Takes the first message, of up to `room` bytes, out of a queue.
///
/// # Errors
/// `ENOMSG` when there is none.
pub fn take_message(id: i32, room: usize) -> io::Result<(i64, Vec<u8>)> {
    receive(id, room, 0, libc::IPC_NOWAIT)
}

/// Puts a message into a queue.
///
/// # Errors
/// `EAGAIN` when there is no room.
pub fn send_message(id: i32, kind: i64, text: &[u8]) -> io::Result<()> {
    let whole = message(kind, text);
    // SAFETY: the buffer holds the type and as many bytes of text as told.
    check(unsafe { libc::msgsnd(id, whole.as_ptr().cast(), text.len(), libc::IPC_NOWAIT) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_made_changed_and_removed() {
        let id = make_segment(libc::IPC_PRIVATE, 5000).unwrap();
        let attached = Attached::new(id).unwrap();
        assert_ne!(attached.address(), 0);
        let now = segment(id).unwrap();
        assert_eq!((now.size, now.attached), (5000, 1));
        let wider = Permissions {
            mode: 0o640,
            ..now.permissions
        };
        change_segment(id, &wider).unwrap();
        remove_segment(id).unwrap();
        assert_eq!(segment(id).unwrap().permissions.mode, 0o1640);
        drop(attached);
        assert!(segment(id).is_err());
    }

    #[test]
    fn semaphores_are_operated_on() {
        let id = make_set(libc::IPC_PRIVATE, 2).unwrap();
        set_semaphore(id, 1, 7).unwrap();
        assert_eq!(set(id).unwrap().operated, 0);
        let operation = Operation {
            number: 1,
            by: -3,
            flags: 0,
        };
        operate(id, &[operation]).unwrap();
        assert_eq!(semaphore(id, 1).unwrap(), (4, std::process::id().cast_signed()));
        assert_ne!(set(id).unwrap().operated, 0);
        remove_set(id).unwrap();
    }

    #[test]
    fn messages_are_copied_without_being_taken() {
        let id = make_queue(libc::IPC_PRIVATE).unwrap();
        send_message(id, 3, b"one").unwrap();
        send_message(id, 2, &[7; 3000]).unwrap();
        assert_eq!(copy_message(id, 1).unwrap(), (2, vec![7; 3000]));
        assert_eq!(take_message(id, 100).unwrap(), (3, b"one".to_vec()));
        assert_eq!(queue(id).unwrap().messages, 1);
        remove_queue(id).unwrap();
    }
}
