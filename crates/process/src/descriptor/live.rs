//! The descriptor tables of stopped processes as they are now, read from outside.
//!
//! Per descriptor one read of `/proc/pid/fdinfo/N`; which descriptors share a description is asked of `kcmp` only
//! among those that look alike there (same inode, mount, offset and flags, which duplicates always have in
//! common); the link and the inode's attributes are read once per description.

use std::cell::OnceCell;
use std::cmp::Ordering;
use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use deltabox_sys::kcmp;
use deltabox_sys::socket::Message;
use rustix::fs::{AtFlags, Mode, OFlags, Statx, StatxFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::error::{Error, Refusal, making, reading};
use super::fdinfo::{self, Entry};
use super::lock;
use super::tables::{ObjectKey, Owner};
use super::unix;
use super::unix_queue::{self, Queued};
use crate::ids::{FirstId, InsidePid};
use crate::stop::Process;

/// A stopped process of the sandbox.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its number in the engine's PID namespace.
    pub pid: Pid,
    /// Its number inside the sandbox.
    pub number: InsidePid,
    /// All its threads but the leader, in the engine's PID namespace.
    pub threads: Vec<Pid>,
}

impl Member {
    /// What is needed of a stopped process.
    #[must_use]
    pub fn of(process: &Process) -> Member {
        let threads = process
            .threads
            .iter()
            .map(|t| t.tracee.tid())
            .filter(|&tid| tid != process.pid());
        Member {
            pid: process.pid().pid(),
            number: process.inside(),
            threads: threads.map(|tid| tid.pid()).collect(),
        }
    }
}

/// All descriptor tables of a sandbox as they are now.
#[derive(Debug)]
pub struct Live {
    pub(super) processes: Vec<LiveProcess>,
    pub(super) descriptions: Vec<LiveDescription>,
    /// The mount id of the sandbox's root.
    pub(super) root_mount: u64,
    /// Its device, in the kernel's own encoding.
    pub(super) root_device: u64,
    /// What is user and group 0 in the sandbox; in an image ids are counted from it.
    pub(super) first_id: FirstId,
    /// The sandbox's network namespace, when the caller gave it; else it is that of the first process.
    pub(super) network: Option<OwnedFd>,
    /// What waits in unix sockets that have descriptors queued; those descriptions are in `descriptions` too.
    pub(super) queues: HashMap<usize, unix::Queue>,
    /// What waited at listening unix sockets, and has been taken out.
    pub(super) backlogs: HashMap<usize, Vec<unix::Waiter>>,
}

#[derive(Debug)]
pub(super) struct LiveProcess {
    pub pid: Pid,
    pub number: InsidePid,
    pub pidfd: OwnedFd,
    /// `/proc/pid`.
    pub dir: OwnedFd,
    /// Position of the process whose table this one uses too.
    pub shared_with: Option<usize>,
    /// A thread with a table or directories of its own.
    pub odd_thread: Option<Pid>,
    /// Ordered by descriptor.
    pub slots: Vec<LiveSlot>,
    /// POSIX locks, which belong to this process: the descriptor they show at, and the line of fdinfo.
    pub posix_locks: Vec<(i32, String)>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct LiveSlot {
    pub fd: i32,
    pub close_on_exec: bool,
    pub description: usize,
}

#[derive(Debug)]
pub(super) struct LiveDescription {
    /// Position of a process that has it, and the descriptor it has it at; of one that is only queued, those of
    /// the socket.
    pub holder: (usize, i32),
    /// No process has it: it is queued in a socket.
    pub queued: bool,
    pub flags: u32,
    pub pos: i64,
    pub mount: u64,
    pub object: ObjectKey,
    /// Where `/proc/pid/fd/N` leads to, as bytes.
    pub link: Vec<u8>,
    pub mode: u32,
    pub links: u32,
    pub size: u64,
    /// Major and minor number of the device this is, if it is one.
    pub device: (u32, u32),
    /// It is a POSIX message queue.
    pub is_queue: bool,
    /// mtime and ctime, for "has it changed?".
    pub changed: Changed,
    /// The lines of fdinfo after `ino:`.
    pub info: String,
    pulled: OnceCell<OwnedFd>,
}

/// Times of a file that move with every change of its content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Changed {
    pub mtime: (i64, u32),
    pub ctime: (i64, u32),
}

impl Live {
    /// Reads the tables of all processes. Nothing is changed, and nothing is held open but the processes.
    ///
    /// # Errors
    /// When `/proc` cannot be read or a process is gone.
    pub fn read(members: &[Member], root: BorrowedFd<'_>, first_id: FirstId) -> Result<Live, Error> {
        let top = statx(root, "", AtFlags::EMPTY_PATH)
            .map_err(|e| reading(InsidePid(0), "the root of the sandbox", e))?;
        let mut live = Live {
            processes: Vec::with_capacity(members.len()),
            descriptions: Vec::new(),
            root_mount: top.stx_mnt_id,
            root_device: (u64::from(top.stx_dev_major) << 20) | u64::from(top.stx_dev_minor),
            first_id,
            network: None,
            queues: HashMap::new(),
            backlogs: HashMap::new(),
        };
        fdinfo::forget_others(members.iter().map(|member| member.pid));
        let mut entries = Vec::new();
        let mut tables = Vec::with_capacity(members.len());
        for member in members {
            live.add_process(member, &mut tables, &mut entries)?;
        }
        live.group(entries)?;
        live.look_into_queues(0)?;
        Ok(live)
    }

    fn add_process(
        &mut self,
        member: &Member,
        tables: &mut Vec<usize>,
        entries: &mut Vec<Entry>,
    ) -> Result<(), Error> {
        let failed = |what: &'static str| move |e: Errno| reading(member.number, what, e);
        let pidfd = pidfd_open(member.pid, PidfdFlags::empty()).map_err(failed("a handle of the process"))?;
        let dir = rustix::fs::open(
            format!("/proc/{}", member.pid.as_raw_nonzero()),
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(failed("its directory in /proc"))?;
        let position = self.processes.len();
        let shared_with = match self.shares_table_with(tables, member)? {
            Ok(owner) => Some(owner),
            Err(place) => {
                tables.insert(place, position);
                None
            }
        };
        let mut odd_thread = None;
        for &thread in &member.threads {
            for resource in [kcmp::Resource::Files, kcmp::Resource::Fs] {
                if compare(member.number, || kcmp::tasks(member.pid, thread, resource))? != Ordering::Equal {
                    odd_thread = Some(thread);
                }
            }
        }
        if shared_with.is_none() {
            fdinfo::read_all(position, member.pid, &dir, entries).map_err(failed("its descriptors"))?;
        }
        self.processes.push(LiveProcess {
            pid: member.pid,
            number: member.number,
            pidfd,
            dir,
            shared_with,
            odd_thread,
            slots: Vec::new(),
            posix_locks: Vec::new(),
        });
        Ok(())
    }

    /// Binary search among those that have a table of their own, in the kernel's order of tables: the process whose
    /// table this one has too, or where in that order it belongs.
    fn shares_table_with(&self, tables: &[usize], member: &Member) -> Result<Result<usize, usize>, Error> {
        let (mut low, mut high) = (0, tables.len());
        while low < high {
            let middle = (low + high) / 2;
            let other = self.processes[tables[middle]].pid;
            let order = compare(member.number, || {
                kcmp::tasks(member.pid, other, kcmp::Resource::Files)
            })?;
            match order {
                Ordering::Equal => return Ok(Ok(tables[middle])),
                Ordering::Less => high = middle,
                Ordering::Greater => low = middle + 1,
            }
        }
        Ok(Err(low))
    }

    /// Finds out which descriptors share a description.
    fn group(&mut self, entries: Vec<Entry>) -> Result<(), Error> {
        type Look = (u64, u64, u32, i64);
        let mut alike: HashMap<Look, Vec<usize>> = HashMap::with_capacity(entries.len());
        for entry in entries {
            let posix = entry
                .info
                .lines()
                .filter(|l| l.starts_with("lock:") && l.contains(" POSIX "));
            self.processes[entry.process]
                .posix_locks
                .extend(posix.map(|l| (entry.fd, l.to_owned())));
            let look = (entry.ino, entry.mount, entry.flags, entry.pos);
            let bucket = alike.entry(look).or_default();
            let description = match self.find_in(bucket, &entry)? {
                Ok(known) => known,
                Err(at) => {
                    let new = self.descriptions.len();
                    bucket.insert(at, new);
                    let (process, fd) = (entry.process, entry.fd);
                    let holder = &self.processes[process];
                    let description = describe(&holder.dir, holder.number, fd, &entry, self.root_mount)?;
                    self.descriptions.push(LiveDescription {
                        info: entry.info,
                        ..description
                    });
                    self.processes[process].slots.push(LiveSlot {
                        fd,
                        close_on_exec: entry.close_on_exec,
                        description: new,
                    });
                    continue;
                }
            };
            self.processes[entry.process].slots.push(LiveSlot {
                fd: entry.fd,
                close_on_exec: entry.close_on_exec,
                description,
            });
        }
        for process in &mut self.processes {
            process.slots.sort_unstable_by_key(|s| s.fd);
        }
        Ok(())
    }

    /// Binary search by the kernel's order: the description, or where a new one belongs.
    fn find_in(&self, bucket: &[usize], entry: &Entry) -> Result<Result<usize, usize>, Error> {
        let process = &self.processes[entry.process];
        let (mut low, mut high) = (0, bucket.len());
        while low < high {
            let middle = (low + high) / 2;
            let (other, fd) = self.task_of(bucket[middle]);
            let order = compare(process.number, || {
                kcmp::descriptions(process.pid, entry.fd, other, fd)
            })?;
            match order {
                Ordering::Equal => return Ok(Ok(bucket[middle])),
                Ordering::Less => high = middle,
                Ordering::Greater => low = middle + 1,
            }
        }
        Ok(Err(low))
    }

    /// A task that has a description in its table, for `kcmp`: ourselves when it is only queued.
    pub(super) fn task_of(&self, description: usize) -> (Pid, i32) {
        let live = &self.descriptions[description];
        match (live.queued, live.pulled.get()) {
            (true, Some(fd)) => (rustix::process::getpid(), fd.as_raw_fd()),
            _ => (self.processes[live.holder.0].pid, live.holder.1),
        }
    }

    /// Adds the descriptions that are queued in unix sockets, from a position on, those in sockets that are queued
    /// themselves included.
    fn look_into_queues(&mut self, mut at: usize) -> Result<(), Error> {
        while at < self.descriptions.len() {
            let has = self.descriptions[at].field("scm_fds").is_some_and(|n| n != "0");
            if has {
                let looked =
                    unix_queue::peek(self.pull(at)?).map_err(making("the queue of a unix socket"))?;
                let mut messages = Vec::with_capacity(looked.messages.len());
                for message in looked.messages {
                    messages.push(self.add_message(message, at)?);
                }
                let queue = unix::Queue {
                    messages,
                    is_hidden: looked.is_hidden,
                    has_error: looked.has_error,
                };
                self.queues.insert(at, queue);
            }
            at += 1;
        }
        Ok(())
    }

    fn add_message(&mut self, mut message: Message, socket: usize) -> Result<Queued, Error> {
        let mut descriptors = Vec::new();
        for fd in std::mem::take(&mut message.descriptors) {
            descriptors.push(self.add_queued(fd, socket)?);
        }
        Ok(Queued {
            descriptors,
            ..unix::known(self, &message)
        })
    }

    /// A message that was taken out of a socket; what came with it is added, and what is queued in that.
    pub(super) fn queued(&mut self, message: Message, socket: usize) -> Result<Queued, Error> {
        let known = self.descriptions.len();
        let queued = self.add_message(message, socket)?;
        self.look_into_queues(known)?;
        Ok(queued)
    }

    /// Finds the description of a descriptor that was queued in the socket at `socket`, or adds it.
    fn add_queued(&mut self, fd: OwnedFd, socket: usize) -> Result<u32, Error> {
        let holder = self.descriptions[socket].holder;
        let number = self.processes[holder.0].number;
        let failed = |e: Errno| reading(number, "a queued descriptor", e);
        let own = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open("/proc/self", own, Mode::empty()).map_err(failed)?;
        let raw = fd.as_raw_fd();
        let entry = fdinfo::read_one(holder.0, &dir, raw).map_err(failed)?;
        let me = rustix::process::getpid();
        for known in 0..self.descriptions.len() {
            let other = &self.descriptions[known];
            if (other.object.ino, other.mount, other.flags) != (entry.ino, entry.mount, entry.flags) {
                continue;
            }
            let (task, at) = self.task_of(known);
            if compare(number, || kcmp::descriptions(me, raw, task, at))? == Ordering::Equal {
                return Ok(known as u32);
            }
        }
        let mut new = describe(&dir, number, raw, &entry, self.root_mount)?;
        new.holder = holder;
        new.queued = true;
        new.info = entry.info;
        new.pulled = OnceCell::from(fd);
        self.descriptions.push(new);
        Ok(self.descriptions.len() as u32 - 1)
    }

    /// A duplicate of a description in our own table. It keeps the object alive until `self` is dropped, which has
    /// to happen before the processes go on: an end of a pipe held here would hide that the last one was closed.
    pub(super) fn pull(&self, description: usize) -> Result<BorrowedFd<'_>, Error> {
        let live = &self.descriptions[description];
        if let Some(fd) = live.pulled.get() {
            return Ok(fd.as_fd());
        }
        let process = &self.processes[live.holder.0];
        let fd = pidfd_getfd(&process.pidfd, live.holder.1, PidfdGetfdFlags::empty())
            .map_err(|e| reading(process.number, "a duplicate of a descriptor", e))?;
        Ok(live.pulled.get_or_init(|| fd).as_fd())
    }

    /// As [`Live::pull`], for the caller to drop: sockets that are to be replaced must be gone before their names
    /// and ports are taken again.
    pub(super) fn duplicate(&self, description: usize) -> Result<OwnedFd, Error> {
        let live = &self.descriptions[description];
        let process = &self.processes[live.holder.0];
        let own = |fd: &OwnedFd| {
            fd.try_clone()
                .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))
        };
        let fd = match live.pulled.get() {
            Some(fd) => own(fd),
            None => pidfd_getfd(&process.pidfd, live.holder.1, PidfdGetfdFlags::empty()),
        };
        fd.map_err(|e| reading(process.number, "a duplicate of a descriptor", e))
    }

    /// The description behind a descriptor of the process with this number inside the sandbox.
    pub(super) fn at(&self, number: InsidePid, fd: i32) -> Option<usize> {
        let process = self.processes.iter().find(|p| p.number == number)?;
        let process = process
            .shared_with
            .map_or(process, |other| &self.processes[other]);
        let slot = process.slots.binary_search_by_key(&fd, |s| s.fd).ok()?;
        Some(process.slots[slot].description)
    }

    pub(super) fn process(&self, number: InsidePid) -> Option<&LiveProcess> {
        self.processes.iter().find(|p| p.number == number)
    }

    /// The number inside the sandbox of a process, thread or group of the engine's namespace.
    pub(super) fn inside(&self, outside: i32) -> Option<InsidePid> {
        if outside <= 0 {
            return None;
        }
        if let Some(process) = self
            .processes
            .iter()
            .find(|p| p.pid.as_raw_nonzero().get() == outside)
        {
            return Some(process.number);
        }
        let status = std::fs::read_to_string(format!("/proc/{outside}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
        line.split_whitespace().last()?.parse().ok().map(InsidePid)
    }

    /// The locks that belong to a description.
    pub(super) fn locks(&self, description: usize) -> Vec<lock::OfDescription> {
        let is = |outside: i32| move |process: &&LiveProcess| process.pid.as_raw_nonzero().get() == outside;
        lock::of_description(&self.descriptions[description].info, |outside| {
            self.processes
                .iter()
                .find(is(outside))
                .map(|process| process.number)
        })
    }

    /// The number outside of a process of the sandbox.
    pub(super) fn outside(&self, inside: InsidePid) -> Option<Pid> {
        self.process(inside).map(|p| p.pid)
    }

    /// Who gets the signals of a description. Asked only where it can matter, since it takes a duplicate of it.
    pub(super) fn owner(&self, description: usize) -> Result<Option<Owner>, Error> {
        let flags = self.descriptions[description].flags;
        let asynchronous = flags & libc::O_ASYNC as u32 != 0;
        let path_only = flags & libc::O_PATH as u32 != 0;
        if !asynchronous || path_only {
            return Ok(None);
        }
        let fd = self.pull(description)?;
        let (process, _) = self.name(description);
        let failed = |source| Error::Read {
            process,
            what: "who gets the signals of a descriptor",
            source,
        };
        let owner = deltabox_sys::fd::owner(fd).map_err(failed)?;
        let signal = deltabox_sys::fd::owner_signal(fd).map_err(failed)?;
        Ok(self.inside(owner.pid).map(|number| Owner {
            kind: owner.kind,
            number,
            signal,
        }))
    }

    /// The process and descriptor to name a description by.
    pub(super) fn name(&self, description: usize) -> (InsidePid, i32) {
        let (process, fd) = self.descriptions[description].holder;
        (self.processes[process].number, fd)
    }

    /// Why a description cannot be carried.
    pub(super) fn refusal(&self, description: usize, why: &str, remedy: &str) -> Error {
        let (process, fd) = self.name(description);
        Error::Refused(vec![Refusal {
            process,
            fd,
            what: String::from_utf8_lossy(&self.descriptions[description].link).into_owned(),
            why: why.to_owned(),
            remedy: remedy.to_owned(),
        }])
    }

    /// Number of processes, descriptors and descriptions.
    #[must_use]
    pub fn count(&self) -> (usize, usize, usize) {
        let descriptors = self.processes.iter().map(|p| p.slots.len()).sum();
        (self.processes.len(), descriptors, self.descriptions.len())
    }
}

impl LiveDescription {
    /// `O_RDONLY`, `O_WRONLY` or `O_RDWR`.
    pub fn access(&self) -> u32 {
        self.flags & libc::O_ACCMODE as u32
    }

    pub fn is_socket(&self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFSOCK
    }

    /// Only unix sockets tell how many descriptors are queued in them.
    pub fn is_unix_socket(&self) -> bool {
        self.field("scm_fds").is_some()
    }

    /// The value of a line `name:  value` of fdinfo.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.info
            .lines()
            .find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim()))
    }
}

fn describe(
    dir: &OwnedFd,
    number: InsidePid,
    fd: i32,
    entry: &Entry,
    root_mount: u64,
) -> Result<LiveDescription, Error> {
    let failed = |what: &'static str| move |e: Errno| reading(number, what, e);
    let path = format!("fd/{fd}");
    let link = rustix::fs::readlinkat(dir, path.as_str(), Vec::with_capacity(128))
        .map_err(failed("the name of a descriptor"))?;
    let attributes =
        statx(dir.as_fd(), &path, AtFlags::empty()).map_err(failed("the attributes of a descriptor"))?;
    let is_queue = entry.mount != root_mount
        && is_queue(dir, &path, &attributes, link.to_bytes()).map_err(failed("the filesystem of a file"))?;
    Ok(LiveDescription {
        holder: (entry.process, fd),
        queued: false,
        flags: entry.flags,
        pos: entry.pos,
        mount: entry.mount,
        object: ObjectKey {
            dev: device(&attributes),
            ino: attributes.stx_ino,
        },
        link: link.into_bytes(),
        mode: u32::from(attributes.stx_mode),
        links: attributes.stx_nlink,
        size: attributes.stx_size,
        device: (attributes.stx_rdev_major, attributes.stx_rdev_minor),
        is_queue,
        changed: Changed {
            mtime: (attributes.stx_mtime.tv_sec, attributes.stx_mtime.tv_nsec),
            ctime: (attributes.stx_ctime.tv_sec, attributes.stx_ctime.tv_nsec),
        },
        info: String::new(),
        pulled: OnceCell::new(),
    })
}

fn is_queue(dir: &OwnedFd, path: &str, attributes: &Statx, link: &[u8]) -> Result<bool, Errno> {
    /// `MQUEUE_MAGIC` (ipc/mqueue.c).
    const QUEUES: u64 = 0x1980_0202;
    let is_file = u32::from(attributes.stx_mode) & libc::S_IFMT == libc::S_IFREG;
    // Memory is what most files of other mounts are.
    if !is_file || !link.starts_with(b"/") || link.starts_with(b"/memfd:") {
        return Ok(false);
    }
    let file = rustix::fs::openat(dir, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    Ok(rustix::fs::fstatfs(file)?.f_type as u64 == QUEUES)
}

fn compare(number: InsidePid, ask: impl FnOnce() -> std::io::Result<Ordering>) -> Result<Ordering, Error> {
    ask().map_err(|source| Error::Read {
        process: number,
        what: "which descriptors are shared",
        source,
    })
}

pub(super) fn statx(dir: BorrowedFd<'_>, path: &str, flags: AtFlags) -> Result<Statx, Errno> {
    rustix::fs::statx(dir, path, flags, StatxFlags::BASIC_STATS | StatxFlags::MNT_ID)
}

pub(super) fn device(attributes: &Statx) -> u64 {
    rustix::fs::makedev(attributes.stx_dev_major, attributes.stx_dev_minor)
}
