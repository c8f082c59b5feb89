//! From live tables to kept ones: what can be carried is noted, what cannot is refused by name first.

use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::rc::Rc;

use rustix::fs::AtFlags;

use super::class::{self, Class};
use super::contents::Contents;
use super::error::{Error, Refusal, making, reading};
use super::external::Externals;
use super::live::{Live, LiveDescription, LiveProcess, device, statx};
use super::place::Place;
use super::tables::{Description, Kind, ObjectKey, Slot, Table, Tables};
use super::{
    chardev, directory, epoll, eventfd, fifo, inotify, lock, memfd, mqueue, multicast, pidfd, pipe, pty,
    regular, signalfd, socket, tcp, tcp_backlog, timerfd, unix, unix_backlog,
};

/// Finds everything that cannot be carried. Nothing is changed.
///
/// # Errors
/// When an object cannot be asked.
pub(super) fn refusals(live: &Live, externals: &Externals) -> Result<Vec<Refusal>, Error> {
    let mut found = Vec::new();
    for process in &live.processes {
        if process.odd_thread.is_some() {
            found.push(Refusal {
                process: process.number,
                fd: -1,
                what: "its threads".into(),
                why: "a thread has a descriptor table or working directory of its own (unshare)".into(),
                remedy: "run the program without unshare(CLONE_FILES) or unshare(CLONE_FS)".into(),
            });
        }
    }
    for (position, description) in live.descriptions.iter().enumerate() {
        if externals.find(description.object).is_some() {
            continue;
        }
        if let Some((what, why, remedy)) = refuse(live, position, description)? {
            let (process, fd) = live.name(position);
            found.push(Refusal {
                process,
                fd,
                what,
                why,
                remedy,
            });
        }
    }
    Ok(found)
}

type Why = (String, String, String);

fn refuse(live: &Live, position: usize, description: &LiveDescription) -> Result<Option<Why>, Error> {
    let link = || String::from_utf8_lossy(&description.link).into_owned();
    let named = |why: &str, remedy: &str| Some((link(), why.to_owned(), remedy.to_owned()));
    if lock::has_lease(&description.info) {
        return Ok(named(
            "a lease waits for an answer inside the kernel",
            "give the lease up first",
        ));
    }
    let reason = match class::of(live, description) {
        Class::Other => {
            let (what, why, remedy) = class::why_refused(description);
            return Ok(Some((what, why.into(), remedy.into())));
        }
        Class::Memfd => memfd::survey(live, position)?,
        Class::Mqueue => mqueue::survey(live, position)?,
        Class::PtyMaster | Class::PtySlave => pty::survey(live, position)?,
        Class::Socket => socket::survey(live, position)?,
        Class::Inotify => inotify::survey(live, position)?,
        _ => None,
    };
    Ok(reason.and_then(|(why, remedy)| named(why, remedy)))
}

/// The kept tables under construction.
pub(super) struct Capture<'a> {
    pub live: &'a Live,
    pub externals: &'a Externals,
    pub previous: Option<&'a Tables>,
    pub tables: Tables,
    pub pipes: HashMap<ObjectKey, u32>,
    pub ptys: HashMap<pty::Identity, u32>,
    epolls: HashMap<usize, epoll::State>,
    unix: Option<Rc<unix::Now>>,
    groups: Option<Rc<[multicast::Group]>>,
}

pub(super) fn capture(
    live: &mut Live,
    externals: &Externals,
    previous: Option<&Tables>,
    contents: &mut dyn Contents,
) -> Result<Tables, Error> {
    let mut unix = None;
    if live.descriptions.iter().any(LiveDescription::is_unix_socket) {
        let mut now = unix::Now::read(live)?;
        unix_backlog::lift(live, &now)?;
        now.note_positions(live);
        unix = Some(Rc::new(now));
    }
    let live = &*live;
    let (tables, pipes, ptys) = (Tables::default(), HashMap::new(), HashMap::new());
    let mut capture = Capture {
        live,
        externals,
        previous,
        tables,
        pipes,
        ptys,
        unix,
        groups: None,
        // First: looking at other things may be an event for those who watch them.
        epolls: epoll::capture(live)?,
    };
    // Queued descriptors come after those of the tables, so that positions agree with the live ones at first.
    for position in 0..live.descriptions.len() {
        let description = capture.description(position, contents)?;
        capture.tables.descriptions.push(description);
    }
    connect_tcp(live, &mut capture.tables)?;
    tcp_backlog::capture(live, previous, &mut capture.tables)?;
    pty::capture_controlling(&mut capture)?;
    for process in &live.processes {
        let table = capture.table(process)?;
        capture.tables.processes.push(table);
    }
    capture.tables.processes.sort_by_key(|t| t.process);
    Ok(capture.tables)
}

fn connect_tcp(live: &Live, tables: &mut Tables) -> Result<(), Error> {
    let mut sockets: Vec<(u32, &mut tcp::State)> = Vec::new();
    for (position, description) in tables.descriptions.iter_mut().enumerate() {
        if let Kind::Tcp(state) = &mut description.kind {
            sockets.push((position as u32, state));
        }
    }
    tcp::connect_ends(live, &mut sockets)
}

impl Capture<'_> {
    fn description(&mut self, position: usize, contents: &mut dyn Contents) -> Result<Description, Error> {
        let live = &self.live.descriptions[position];
        Ok(Description {
            flags: live.flags,
            pos: live.pos,
            object: live.object,
            mapped: None,
            owner: self.live.owner(position)?,
            locks: self.live.locks(position),
            kind: self.kind(position, contents)?,
        })
    }

    fn kind(&mut self, position: usize, contents: &mut dyn Contents) -> Result<Kind, Error> {
        let live = self.live;
        let description = &live.descriptions[position];
        if let Some(id) = self.externals.find(description.object) {
            if class::of(live, description) == Class::PtySlave {
                return pty::capture_slave(self, position, Some(id)).map(Kind::PtySlave);
            }
            return Ok(Kind::External(id));
        }
        Ok(match class::of(live, description) {
            Class::Path => Kind::Path(Place::of(live, description)),
            Class::Regular => Kind::Regular(regular::capture(live, position, self.previous, contents)?),
            Class::Directory => Kind::Directory(directory::capture(live, description)),
            Class::Pipe => Kind::Pipe(pipe::End {
                pipe: self.pipe(position)?,
            }),
            Class::Fifo => {
                let place = Place::of(live, description);
                Kind::Fifo(fifo::State {
                    place,
                    pipe: self.pipe(position)?,
                })
            }
            Class::CharDevice => Kind::CharDevice(chardev::capture(live, description, false)),
            Class::Tty => Kind::CharDevice(chardev::capture(live, description, true)),
            Class::PtyMaster => Kind::PtyMaster(pty::capture_master(self, position)?),
            Class::PtySlave => Kind::PtySlave(pty::capture_slave(self, position, None)?),
            Class::Eventfd => Kind::Eventfd(eventfd::capture(description)?),
            Class::Epoll => Kind::Epoll(self.epolls.remove(&position).unwrap_or_default()),
            Class::Timerfd => Kind::Timerfd(timerfd::capture(live, position)?),
            Class::Signalfd => Kind::Signalfd(signalfd::capture(description)?),
            Class::Inotify => Kind::Inotify(inotify::capture(live, position)?),
            Class::Pidfd => Kind::Pidfd(pidfd::capture(description)?),
            Class::Memfd => Kind::Memfd(memfd::capture(live, position, self.previous, contents)?),
            Class::Mqueue => Kind::Mqueue(mqueue::capture(live, position)?),
            Class::Socket => socket::capture(self, position)?,
            Class::Other => return Err(Error::Refused(refusals(live, self.externals)?)),
        })
    }

    /// What the kernel says of all unix sockets, asked once.
    pub(super) fn unix_now(&mut self) -> Result<Rc<unix::Now>, Error> {
        if let Some(known) = &self.unix {
            return Ok(Rc::clone(known));
        }
        let now = Rc::new(unix::Now::read(self.live)?);
        self.unix = Some(Rc::clone(&now));
        Ok(now)
    }

    /// The multicast groups that anybody is in, asked for once.
    pub(super) fn groups(&mut self) -> Result<Rc<[multicast::Group]>, Error> {
        if let Some(known) = &self.groups {
            return Ok(Rc::clone(known));
        }
        let groups = multicast::groups(self.live).map_err(making("multicast groups"))?;
        let groups: Rc<[multicast::Group]> = groups.into();
        self.groups = Some(Rc::clone(&groups));
        Ok(groups)
    }

    fn pipe(&mut self, position: usize) -> Result<u32, Error> {
        let object = self.live.descriptions[position].object;
        if let Some(&known) = self.pipes.get(&object) {
            return Ok(known);
        }
        // One to read from, if there is any: opening another end of a FIFO is an event for those who watch it.
        let mut ends = self.live.descriptions.iter().enumerate();
        let readable =
            ends.find(|(_, other)| other.object == object && other.access() != libc::O_WRONLY as u32);
        let end = readable.map_or(position, |(found, _)| found);
        let state = pipe::capture(self.live.pull(end)?, object)?;
        let new = self.tables.pipes.len() as u32;
        self.tables.pipes.push(state);
        self.pipes.insert(object, new);
        Ok(new)
    }

    fn table(&self, process: &LiveProcess) -> Result<Table, Error> {
        let slots = process.slots.iter().map(|slot| Slot {
            fd: slot.fd,
            close_on_exec: slot.close_on_exec,
            description: slot.description as u32,
        });
        let (cwd, root) = directories(self.live, process)?;
        Ok(Table {
            process: process.number,
            shared_with: process.shared_with.map(|other| self.live.processes[other].number),
            slots: slots.collect(),
            cwd,
            root,
            locks: lock::of_process(&process.posix_locks),
        })
    }
}

/// The working directory of a process, and its root when that is not the sandbox's.
pub(super) fn directories(live: &Live, process: &LiveProcess) -> Result<(Place, Option<Place>), Error> {
    let cwd = directory_of(live, process, "cwd")?;
    let root = directory_of(live, process, "root")?;
    let usual = matches!(&root, Place::Root { path, .. } if path == b"/");
    Ok((cwd, (!usual).then_some(root)))
}

fn directory_of(live: &Live, process: &LiveProcess, name: &'static str) -> Result<Place, Error> {
    let failed = |e| reading(process.number, "its working directory", e);
    let dir: BorrowedFd<'_> = std::os::fd::AsFd::as_fd(&process.dir);
    let link = rustix::fs::readlinkat(dir, name, Vec::with_capacity(128)).map_err(failed)?;
    let attributes = statx(dir, name, AtFlags::empty()).map_err(failed)?;
    let object = ObjectKey {
        dev: device(&attributes),
        ino: attributes.stx_ino,
    };
    let on_root = attributes.stx_mnt_id == live.root_mount;
    // A removed directory of overlayfs may still count its own link.
    let removed = link.as_bytes().ends_with(b" (deleted)");
    let links = if removed { 0 } else { attributes.stx_nlink };
    Ok(Place::from_facts(on_root, link.as_bytes(), object, links))
}
