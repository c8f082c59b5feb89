//! From kept tables back to live ones, in place: what is right is left alone, what differs is adjusted, what is
//! missing is made by our side and installed.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{OFlags, SeekFrom, fcntl_setfl};

use super::capture::directories;
use super::contents::Contents;
use super::edit::{self, Destination, Edit, Install};
use super::error::{Error, bad_state, making};
use super::external::Externals;
use super::live::{Live, LiveProcess, Member};
use super::matching::{ASYNC, SETTABLE, matching};
use super::place::{Place, reopen};
use super::tables::{Description, Kind, ObjectKey, Table, Tables};
use super::terminals::Terminals;
use super::{
    directory, edge, epoll, eventfd, fifo, inotify, late, lock, memfd, mqueue, pidfd, pipe, pty, regular,
    signalfd,
};
use super::{socket, timerfd};
use crate::ids::FirstId;
use crate::ipc::Namespace;
use crate::shared::Key;
use crate::stop::Process;

/// What restoring descriptors needs besides the processes.
pub struct Environment<'a> {
    /// The root of the sandbox, already the wanted state's.
    pub root: BorrowedFd<'a>,
    /// The user and group id, as the engine sees it, of what is 0 in the sandbox.
    pub first_id: FirstId,
    /// The sandbox's network namespace; when not given, that of the first process.
    pub network: Option<BorrowedFd<'a>>,
    /// Its IPC namespace, if it has one of its own.
    pub ipc: Option<&'a Namespace>,
    pub externals: &'a Externals,
    pub contents: &'a dyn Contents,
    /// Those that had to be there before.
    pub terminals: &'a Terminals,
    /// Files that processes map, as what descriptions are noted with that lead to them.
    pub mapped: &'a HashMap<Key, File>,
}

/// Makes the file without a name that is also mapped as `key`, if there is a description of it. Its seals come later:
/// they might be in the way of mapping it.
pub(crate) fn make_mapped(
    wanted: &Tables,
    key: Key,
    environment: &Environment<'_>,
) -> Result<Option<OwnedFd>, Error> {
    let mut of_it = wanted.descriptions.iter().filter(|d| d.mapped == Some(key));
    of_it
        .next()
        .map(|description| match &description.kind {
            Kind::Memfd(state) => memfd::make_unsealed(state, environment.contents).map(Some),
            Kind::Regular(state) => regular::make(state, libc::O_RDWR as u32, environment).map(Some),
            _ => Ok(None),
        })
        .unwrap_or(Ok(None))
}

/// What a restore did, for the phases' report and for tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Descriptions that led to the wanted object already.
    pub kept: usize,
    /// Descriptions made anew.
    pub made: usize,
    /// Descriptors closed, installed, or whose close-on-exec flag was changed.
    pub edited: usize,
}

/// The work in progress.
pub(super) struct Restore<'a> {
    pub live: &'a Live,
    pub wanted: &'a Tables,
    pub environment: &'a Environment<'a>,
    /// Of each wanted description: the live one that is kept.
    pub kept: Vec<Option<usize>>,
    /// Of each wanted description: the new one.
    pub made: Vec<Option<OwnedFd>>,
    /// Live descriptions that were closed everywhere already.
    pub evicted: BTreeSet<usize>,
    /// Ends held open until everything is in place, or new pipes would lose their content.
    held: Vec<OwnedFd>,
}

/// Makes the tables of all processes equal the wanted ones.
///
/// # Errors
/// When an object cannot be made or a process does not do its part; the tables are in between then, and the
/// caller has to end or re-create the processes.
pub fn restore(
    processes: &mut [Process],
    wanted: &Tables,
    environment: &Environment<'_>,
) -> Result<Report, Error> {
    let members: Vec<Member> = processes.iter().map(Member::of).collect();
    let mut live = Live::read(&members, environment.root, environment.first_id)?;
    let network = environment.network.map(|fd| fd.try_clone_to_owned()).transpose();
    live.network = network.map_err(making("a handle of the network namespace"))?;
    for table in &wanted.processes {
        if !live.processes.iter().any(|p| p.number == table.process) {
            return Err(Error::Missing {
                process: table.process,
            });
        }
    }
    let kept = matching(wanted, &live, environment.externals, environment.mapped)?;
    let made = wanted.descriptions.iter().map(|_| None).collect();
    let mut restore = Restore {
        live: &live,
        wanted,
        environment,
        kept,
        made,
        evicted: BTreeSet::new(),
        held: Vec::new(),
    };
    let epolls = epoll::look(&restore)?;
    restore.pipes()?;
    pty::restore_all(&mut restore)?;
    restore.make_missing()?;
    socket::restore_all(&mut restore, processes)?;
    restore.adjust()?;
    let edited = restore.edit(processes)?;
    pty::restore_sessions(&restore, processes)?;
    late::of_opener(&mut restore, processes)?;
    inotify::restore_all(&restore)?;
    epoll::restore_all(&restore, &epolls, processes)?;
    late::connects(&restore, processes)?;
    late::flocks(&restore, processes)?;
    late::owners(&restore, processes)?;
    late::posix_locks(&restore, processes)?;
    let made = restore.made.iter().filter(|m| m.is_some()).count();
    let report = Report {
        kept: restore.kept.iter().flatten().count(),
        made,
        edited,
    };
    // Ends that only we have open are closed first, which is an event for those who watch the other ones.
    let edges = edge::prepare(&restore)?;
    drop(restore);
    drop(live);
    edges.iter().try_for_each(edge::Edges::restore)?;
    Ok(report)
}

impl Restore<'_> {
    /// Our duplicate of a wanted description, kept or made.
    pub(super) fn object(&self, wanted: usize) -> Result<BorrowedFd<'_>, Error> {
        if let Some(made) = &self.made[wanted] {
            return Ok(made.as_fd());
        }
        match self.kept[wanted] {
            Some(live) => self.live.pull(live),
            None => Err(bad_state(self.show(wanted), "it was neither kept nor made")),
        }
    }

    /// A wanted description for messages: the first descriptor that leads to it.
    pub(super) fn show(&self, wanted: usize) -> String {
        for table in &self.wanted.processes {
            if let Some(slot) = table.slots.iter().find(|s| s.description as usize == wanted) {
                return format!("descriptor {} of process {}", slot.fd, table.process);
            }
        }
        "a queued descriptor".into()
    }

    /// Puts the content of pipes back, and makes those pipes and ends that are missing.
    fn pipes(&mut self) -> Result<(), Error> {
        let mut ends: HashMap<u32, Vec<usize>> = HashMap::new();
        for (position, description) in self.wanted.descriptions.iter().enumerate() {
            match &description.kind {
                Kind::Pipe(end) => ends.entry(end.pipe).or_default().push(position),
                Kind::Fifo(state) => ends.entry(state.pipe).or_default().push(position),
                _ => {}
            }
        }
        for (pipe, ends) in ends {
            self.pipe(&self.wanted.pipes[pipe as usize], &ends)?;
        }
        Ok(())
    }

    fn pipe(&mut self, state: &pipe::State, ends: &[usize]) -> Result<(), Error> {
        let kept = ends.iter().find_map(|&end| self.kept[end]);
        let new = match kept {
            Some(live) => {
                pipe::restore(state, self.live.pull(live)?)?;
                if ends.iter().all(|&end| self.kept[end].is_some()) {
                    return Ok(());
                }
                None
            }
            None => Some(match &self.wanted.descriptions[ends[0]].kind {
                Kind::Fifo(fifo) => {
                    let opened = fifo::open(fifo, self.environment.root)?;
                    pipe::restore(state, opened.as_fd())?;
                    opened
                }
                _ => pipe::make(state)?,
            }),
        };
        for &end in ends {
            if self.kept[end].is_some() {
                continue;
            }
            let any = match (&new, kept) {
                (Some(new), _) => new.as_fd(),
                (None, Some(live)) => self.live.pull(live)?,
                (None, None) => continue,
            };
            let made = pipe::open_end(any, self.wanted.descriptions[end].flags)?;
            self.made[end] = Some(made);
        }
        self.held.extend(new);
        Ok(())
    }

    /// Makes every description that has no live counterpart, except those that need their peers or a process.
    fn make_missing(&mut self) -> Result<(), Error> {
        // Several descriptions of one file without a name have to lead to one file again.
        let mut nameless: HashMap<ObjectKey, usize> = HashMap::new();
        for position in 0..self.wanted.descriptions.len() {
            let description = &self.wanted.descriptions[position];
            if self.kept[position].is_some() && is_nameless(&description.kind) {
                nameless.entry(description.object).or_insert(position);
            }
        }
        for position in 0..self.wanted.descriptions.len() {
            if self.kept[position].is_some() || self.made[position].is_some() {
                continue;
            }
            let description = &self.wanted.descriptions[position];
            if let Some(file) = description
                .mapped
                .and_then(|key| self.environment.mapped.get(&key))
            {
                let again = reopen(file.as_fd(), description.flags);
                self.made[position] = Some(again.map_err(making(self.show(position)))?);
                continue;
            }
            if let Some(&first) = nameless.get(&description.object) {
                let again = reopen(self.object(first)?, description.flags);
                self.made[position] = Some(again.map_err(making(self.show(position)))?);
                continue;
            }
            self.made[position] = self.make(description)?;
            if is_nameless(&description.kind) {
                nameless.insert(description.object, position);
            }
        }
        Ok(())
    }

    fn make(&self, description: &Description) -> Result<Option<OwnedFd>, Error> {
        let (root, contents) = (self.environment.root, self.environment.contents);
        let flags = description.flags;
        Ok(Some(match &description.kind {
            Kind::Path(place) => match place {
                Place::Deleted { .. } => directory::removed(root, flags).map_err(making(place.show()))?,
                _ => place.open(root, flags)?,
            },
            Kind::Regular(state) => regular::make(state, flags, self.environment)?,
            Kind::Directory(state) => directory::make(state, flags, root)?,
            Kind::CharDevice(state) if !state.of_opener => state.place.open(root, flags)?,
            Kind::Eventfd(state) => eventfd::make(state)?,
            Kind::Epoll(_) => epoll::make()?,
            Kind::Timerfd(state) => timerfd::make(state)?,
            Kind::Signalfd(state) => signalfd::make(state)?,
            Kind::Inotify(_) => inotify::make()?,
            Kind::Pidfd(state) => pidfd::make(state, flags, self.live)?,
            Kind::Memfd(state) => memfd::make(state, flags, contents)?,
            Kind::Mqueue(state) => mqueue::make(state, flags, self.environment)?,
            Kind::External(id) => {
                let end = self.environment.externals.end(*id).ok_or_else(|| {
                    bad_state(
                        format!("external object {}", id.0),
                        "its owner gave no duplicate of it",
                    )
                })?;
                reopen(end, flags | libc::O_NONBLOCK as u32)
                    .or_else(|_| rustix::io::fcntl_dupfd_cloexec(end, 0))
                    .map_err(making(format!("external object {}", id.0)))?
            }
            // Made with their other half, or by the process itself.
            Kind::CharDevice(_)
            | Kind::Pipe(_)
            | Kind::Fifo(_)
            | Kind::PtyMaster(_)
            | Kind::PtySlave(_)
            | Kind::Unix(_)
            | Kind::Tcp(_)
            | Kind::Udp(_)
            | Kind::Netlink(_) => {
                return Ok(None);
            }
        }))
    }

    /// Brings offset, flags, state, owner and locks of every description to what they were.
    fn adjust(&self) -> Result<(), Error> {
        // Conflicting locks of others have to go before any is taken.
        for (position, description) in self.wanted.descriptions.iter().enumerate() {
            if let Some(live) = self.kept[position] {
                let held = self.live.locks(live);
                if held != description.locks {
                    lock::release(self.live.pull(live)?, &held, &self.show(position))?;
                }
            }
        }
        self.release_discarded()?;
        for (position, description) in self.wanted.descriptions.iter().enumerate() {
            match self.kept[position] {
                Some(live) => self.adjust_kept(position, description, live)?,
                None if self.made[position].is_some() => self.adjust_made(position, description)?,
                None => {}
            }
        }
        Ok(())
    }

    /// Locks of descriptions that go away are still held while our duplicates are; give them up now.
    fn release_discarded(&self) -> Result<(), Error> {
        let kept: BTreeSet<usize> = self.kept.iter().flatten().copied().collect();
        for position in 0..self.live.descriptions.len() {
            let held = self.live.locks(position);
            if !held.is_empty() && !kept.contains(&position) {
                lock::release(self.live.pull(position)?, &held, "a file that is being closed")?;
            }
        }
        Ok(())
    }

    fn adjust_kept(&self, position: usize, wanted: &Description, live: usize) -> Result<(), Error> {
        let now = &self.live.descriptions[live];
        let what = || self.show(position);
        match &wanted.kind {
            Kind::Eventfd(state) => {
                let current = eventfd::capture(now)?;
                if current != *state {
                    eventfd::restore(state, self.live.pull(live)?, &current)?;
                }
            }
            Kind::Timerfd(state) if !timerfd::idle(state, &timerfd::capture(self.live, live)?) => {
                timerfd::restore(state, self.live.pull(live)?)?;
            }
            Kind::Signalfd(state) if signalfd::capture(now)? != *state => {
                signalfd::restore(state, self.live.pull(live)?)?;
            }
            Kind::Memfd(state) => memfd::restore(state, self.live.pull(live)?, self.environment.contents)?,
            Kind::Regular(state) if wanted.mapped.is_some() => {
                regular::restore(state, self.live.pull(live)?, self.environment)?
            }
            Kind::Mqueue(state) => mqueue::restore(state, self.live, live)?,
            _ => {}
        }
        if seekable(&wanted.kind) && now.pos != wanted.pos {
            seek(self.live.pull(live)?, wanted.pos).map_err(making(what()))?;
        }
        if !matches!(wanted.kind, Kind::Path(_)) && (now.flags ^ wanted.flags) & SETTABLE != 0 {
            let asynchronous = now.flags & wanted.flags & ASYNC;
            set_flags(self.live.pull(live)?, wanted.flags & !ASYNC | asynchronous).map_err(making(what()))?;
        }
        if self.live.locks(live) != wanted.locks {
            lock::take(self.live.pull(live)?, &wanted.locks, &what())?;
        }
        Ok(())
    }

    fn adjust_made(&self, position: usize, wanted: &Description) -> Result<(), Error> {
        let fd = self.object(position)?;
        let what = || self.show(position);
        if let Kind::Timerfd(state) = &wanted.kind {
            timerfd::restore(state, fd)?;
        }
        if seekable(&wanted.kind) && wanted.pos != 0 {
            seek(fd, wanted.pos).map_err(making(what()))?;
        }
        if !matches!(wanted.kind, Kind::Path(_)) {
            set_flags(fd, wanted.flags & !ASYNC).map_err(making(what()))?;
        }
        lock::take(fd, &wanted.locks, &what())?;
        Ok(())
    }

    /// Takes a duplicate of every description that stays, but not at the descriptor it would be taken from later: once
    /// the first table has been edited, something else may be there.
    fn hold_what_moves(&self) -> Result<(), Error> {
        for (wanted, live) in self.kept.iter().enumerate() {
            let Some(live) = *live else { continue };
            let (process, fd) = self.live.descriptions[live].holder;
            let number = self.live.processes[process].number;
            let table = self.wanted.processes.iter().find(|table| table.process == number);
            let stays = table.is_some_and(|table| {
                let slot = table.slots.binary_search_by_key(&fd, |slot| slot.fd);
                slot.is_ok_and(|at| table.slots[at].description as usize == wanted)
            });
            if !stays {
                self.live.pull(live)?;
            }
        }
        Ok(())
    }

    /// Edits every table that differs; gives the number of descriptors touched.
    fn edit(&self, processes: &mut [Process]) -> Result<usize, Error> {
        self.hold_what_moves()?;
        let mut edited = 0;
        for table in &self.wanted.processes {
            let live = self.live.process(table.process).ok_or(Error::Missing {
                process: table.process,
            })?;
            let process =
                processes
                    .iter_mut()
                    .find(|p| p.inside() == table.process)
                    .ok_or(Error::Missing {
                        process: table.process,
                    })?;
            let directories = self.directories(table, live)?;
            let mut plan = self.plan(table, live)?;
            for (fd, place) in &directories {
                plan.install.push(Install {
                    object: fd.as_fd(),
                    place: place.clone(),
                });
            }
            if plan.close.is_empty() && plan.mark.is_empty() && plan.install.is_empty() {
                continue;
            }
            edited += plan.close.len() + plan.mark.len() + plan.install.len();
            edit::apply(process, live.pidfd.as_fd(), plan)?;
        }
        Ok(edited)
    }

    fn plan(&self, table: &Table, live: &LiveProcess) -> Result<Edit<'_>, Error> {
        let mut plan = Edit::default();
        let live_shares = live.shared_with.map(|other| self.live.processes[other].number);
        if table.shared_with != live_shares {
            return Err(bad_state(
                format!("the descriptor table of process {}", table.process),
                "whether it shares its table with another process has changed; re-create it",
            ));
        }
        let still_open = live
            .slots
            .iter()
            .filter(|s| !self.evicted.contains(&s.description));
        plan.open = still_open.map(|s| s.fd).collect();
        plan.wanted = table.slots.iter().map(|s| s.fd).collect();
        let mut installs: Vec<(u32, Vec<(i32, bool)>)> = Vec::new();
        for slot in &table.slots {
            let now = live
                .slots
                .binary_search_by_key(&slot.fd, |s| s.fd)
                .ok()
                .map(|at| live.slots[at]);
            let right = now.filter(|now| self.kept[slot.description as usize] == Some(now.description));
            match right {
                Some(now) if now.close_on_exec != slot.close_on_exec => {
                    plan.mark.push((slot.fd, slot.close_on_exec));
                }
                Some(_) => {}
                None => {
                    // Closed first, so that installing needs no more descriptors than the wanted table has.
                    if plan.open.contains(&slot.fd) {
                        plan.close.push(slot.fd);
                    }
                    if self.deferred(slot.description as usize) {
                        continue;
                    }
                    let entry = (slot.fd, slot.close_on_exec);
                    match installs.iter_mut().find(|(d, _)| *d == slot.description) {
                        Some((_, slots)) => slots.push(entry),
                        None => installs.push((slot.description, vec![entry])),
                    }
                }
            }
        }
        plan.close.extend(plan.open.difference(&plan.wanted));
        for (description, slots) in installs {
            let object = self.object(description as usize)?;
            plan.install.push(Install {
                object,
                place: Destination::Slots(slots),
            });
        }
        Ok(plan)
    }

    /// Made by a process itself, once its terminal is in place.
    fn deferred(&self, wanted: usize) -> bool {
        self.kept[wanted].is_none()
            && self.made[wanted].is_none()
            && matches!(&self.wanted.descriptions[wanted].kind, Kind::CharDevice(s) if s.of_opener)
    }

    /// The directories a process has to be moved to.
    fn directories(&self, table: &Table, live: &LiveProcess) -> Result<Vec<(OwnedFd, Destination)>, Error> {
        let (cwd, root) = directories(self.live, live)?;
        let mut moves = Vec::new();
        if let Some(wanted) = &table.root
            && root.as_ref() != Some(wanted)
        {
            moves.push((self.directory(wanted)?, Destination::RootDirectory));
        }
        // Changing the root goes by way of the working directory.
        if cwd != table.cwd || !moves.is_empty() {
            moves.push((self.directory(&table.cwd)?, Destination::WorkingDirectory));
        }
        Ok(moves)
    }

    fn directory(&self, place: &Place) -> Result<OwnedFd, Error> {
        let flags = (libc::O_PATH | libc::O_DIRECTORY) as u32;
        match place {
            Place::Deleted { .. } => {
                directory::removed(self.environment.root, flags).map_err(making(place.show()))
            }
            _ => place.open(self.environment.root, flags),
        }
    }
}

/// What no other description can be opened of than by way of one that is there.
fn is_nameless(kind: &Kind) -> bool {
    match kind {
        Kind::Mqueue(state) => state.nameless.is_some(),
        _ => kind.is_nameless_file(),
    }
}

fn seekable(kind: &Kind) -> bool {
    matches!(kind, Kind::Regular(_) | Kind::Directory(_) | Kind::Memfd(_))
}

fn seek(fd: BorrowedFd<'_>, pos: i64) -> Result<(), rustix::io::Errno> {
    rustix::fs::seek(fd, SeekFrom::Start(pos.cast_unsigned())).map(drop)
}

fn set_flags(fd: BorrowedFd<'_>, flags: u32) -> Result<(), rustix::io::Errno> {
    fcntl_setfl(fd, OFlags::from_bits_retain(flags & SETTABLE))
}
