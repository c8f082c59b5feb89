//! The sandbox's IPC namespace: what is in it, and a thread of ours that stands in it for a moment.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};

use rustix::fs::{Access, Mode, OFlags, RawDir, SeekFrom, access, openat, seek};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
use rustix::process::{Gid, Uid};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space, set_thread_res_gid, set_thread_res_uid};

use super::Permissions;
use crate::ids::{FirstId, HostPid};

/// The kinds of System V objects, as `/proc` names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Shm,
    Sem,
    Msg,
}

impl Kind {
    const ALL: [Kind; 3] = [Kind::Shm, Kind::Sem, Kind::Msg];

    fn name(self) -> &'static str {
        match self {
            Kind::Shm => "shm",
            Kind::Sem => "sem",
            Kind::Msg => "msg",
        }
    }
}

/// An IPC namespace.
#[derive(Debug)]
pub struct Namespace {
    handle: File,
    /// The files of `/proc/sysvipc`: they tell of the namespace of whoever opened them. `None` where the kernel has none.
    lists: [Option<File>; 3],
    queues: Option<Queues>,
}

/// The POSIX message queues.
#[derive(Debug)]
struct Queues {
    directory: OwnedFd,
    /// Attached nowhere: the sandbox need not have one. Taking it down takes the kernel a while.
    _mount: OwnedFd,
}

impl Namespace {
    /// That of a process; `None` when it is our own, which is nothing to be carried.
    pub(super) fn of(pid: HostPid) -> io::Result<Option<Namespace>> {
        let handle = File::open(format!("/proc/{pid}/ns/ipc"))?;
        if handle.metadata()?.ino() == std::fs::metadata("/proc/thread-self/ns/ipc")?.ino() {
            return Ok(None);
        }
        let (lists, queues) = inside(&handle, || {
            let lists = Kind::ALL.map(|kind| list(kind.name()));
            let [shm, sem, msg] = lists;
            Ok(([shm?, sem?, msg?], mount_queues()?))
        })?;
        Ok(Some(Namespace {
            handle,
            lists,
            queues,
        }))
    }

    /// Runs `work` on a thread in the namespace.
    pub(super) fn enter<R: Send>(&self, work: impl FnOnce() -> io::Result<R> + Send) -> io::Result<R> {
        inside(&self.handle, work)
    }

    /// The ids of all objects of a kind.
    pub(super) fn ids(&self, kind: Kind) -> io::Result<Vec<i32>> {
        let Some(list) = &self.lists[kind as usize] else {
            return Ok(Vec::new());
        };
        let mut text = Vec::new();
        let mut room = [0; 4096];
        loop {
            match list.read_at(&mut room, text.len() as u64)? {
                0 => break,
                got => text.extend_from_slice(&room[..got]),
            }
            // Nothing but the heading: the usual case takes one read.
            if text.iter().filter(|&&byte| byte == b'\n').count() == 1
                && text.ends_with(b"\n")
                && text.len() < 512
            {
                break;
            }
        }
        let text = String::from_utf8_lossy(&text);
        let ids = text
            .lines()
            .skip(1)
            .map(|line| line.split_whitespace().nth(1)?.parse().ok());
        ids.collect::<Option<Vec<i32>>>()
            .ok_or_else(|| io::Error::other("/proc/sysvipc is not as expected"))
    }

    /// The names of all POSIX message queues.
    pub(super) fn queue_names(&self) -> io::Result<Vec<Vec<u8>>> {
        let Some(queues) = &self.queues else {
            return Ok(Vec::new());
        };
        let queues = &queues.directory;
        seek(queues, SeekFrom::Start(0))?;
        let mut room = [MaybeUninit::uninit(); 4096];
        let mut entries = RawDir::new(queues, &mut room);
        let mut names = Vec::new();
        while let Some(entry) = entries.next() {
            let name = entry?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(name);
            }
        }
        Ok(names)
    }

    /// The directory of POSIX message queues.
    pub(crate) fn queues(&self) -> io::Result<BorrowedFd<'_>> {
        let queues = self.queues.as_ref().map(|queues| queues.directory.as_fd());
        queues.ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))
    }
}

fn inside<R: Send>(handle: &File, work: impl FnOnce() -> io::Result<R> + Send) -> io::Result<R> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            move_into_link_name_space(handle.as_fd(), Some(LinkNameSpaceType::InterProcessCommunication))?;
            work()
        });
        thread.join().map_err(|_| io::Error::other("a thread panicked"))?
    })
}

fn list(name: &str) -> io::Result<Option<File>> {
    match File::open(format!("/proc/sysvipc/{name}")) {
        Ok(list) => Ok(Some(list)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Mounts the queues of the calling thread's namespace.
fn mount_queues() -> io::Result<Option<Queues>> {
    let filesystem = match fsopen("mqueue", FsOpenFlags::FSOPEN_CLOEXEC) {
        Ok(filesystem) => filesystem,
        Err(Errno::NODEV) => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    fsconfig_create(&filesystem)?;
    let mount = fsmount(
        &filesystem,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = openat(&mount, ".", flags, Mode::empty())?;
    Ok(Some(Queues {
        directory,
        _mount: mount,
    }))
}

fn next_id(kind: Kind) -> String {
    format!("/proc/sys/kernel/{}_next_id", kind.name())
}

/// Whether objects can be made with the ids they had.
pub(super) fn ids_can_be_chosen() -> bool {
    Kind::ALL
        .into_iter()
        .all(|kind| access(next_id(kind), Access::WRITE_OK).is_ok())
}

/// Has `make` make an object with this id and this creator. To be called inside the namespace, in which the place must
/// be free.
pub(super) fn make_with_id(
    kind: Kind,
    id: i32,
    permissions: &Permissions,
    first: FirstId,
    make: impl FnOnce() -> io::Result<i32>,
) -> io::Result<()> {
    std::fs::write(
        format!("/proc/sys/kernel/{}_next_id", kind.name()),
        id.to_string(),
    )?;
    let made = as_user(first, permissions.creator, make);
    match made? {
        made if made == id => Ok(()),
        made => Err(io::Error::other(format!("it got the id {made}"))),
    }
}

/// Calls `make` as another user, whom what it makes belongs to and counts for. Of this thread only.
pub(super) fn as_user<R>(
    first: FirstId,
    (user, group): (u32, u32),
    make: impl FnOnce() -> io::Result<R>,
) -> io::Result<R> {
    let (user, group) = (
        Uid::from_raw(first.outside(user)),
        Gid::from_raw(first.outside(group)),
    );
    set_thread_res_gid(Gid::ROOT, group, Gid::ROOT)?;
    let made = set_thread_res_uid(Uid::ROOT, user, Uid::ROOT)
        .map_err(io::Error::from)
        .and_then(|()| make());
    set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)?;
    set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
    made
}
