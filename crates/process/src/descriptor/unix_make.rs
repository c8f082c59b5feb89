//! Making unix sockets anew, and filling their queues.
//!
//! Whom a socket names as its peer (`SO_PEERCRED`) is settled by the process that calls socketpair, listen or
//! connect; so these are called in that process. Names are settled by our side, standing in the sandbox's root, so
//! that they read as the program spelled them; the socket file of a listener is replaced by one with the same owner,
//! mode and times, since the kernel knows no other way to lead a file to a new socket.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use deltabox_sys::socket::{Attachments, Credentials, bind, connect, int_option, set_int_option};
use rustix::io::Errno;
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, socket_with, socketpair};

use super::borrow;
use super::error::{Error, bad_state, making};
use super::live::Live;
use super::options::{self, Family};
use super::restore::Restore;
use super::room;
use super::unix::{Role, State};
use super::unix_fit::{is_abstract, queue_is_right, serves, sockets, state};
use super::unix_name::{self, Way};
use super::unix_queue::{self, Identity, Queued};
use super::{unix_backlog, unix_renew};
use crate::inject::Arg;
use crate::stop::Process;

/// Makes what is missing and puts everything into its wanted state.
pub(super) fn restore_all(restore: &mut Restore<'_>, processes: &mut [Process]) -> Result<(), Error> {
    let sockets = sockets(restore);
    if sockets.is_empty() {
        return Ok(());
    }
    let new: BTreeSet<usize> = sockets
        .iter()
        .copied()
        .filter(|&w| restore.kept[w].is_none())
        .collect();
    let mut maker = Maker {
        restore,
        processes,
        partners: HashMap::new(),
        listeners: Vec::new(),
        gone: Vec::new(),
    };
    for &wanted in &new {
        maker.plain(wanted)?;
    }
    for &wanted in &new {
        maker.connected(wanted)?;
    }
    for &wanted in &sockets {
        maker.waiting(wanted)?;
    }
    maker.fill(&sockets)?;
    maker.fill_waiting()?;
    maker.finish(&sockets)
}

/// A listener of ours: what it accepts has the wanted name, and those who connect see the wanted process.
struct Listener {
    kind: i32,
    name: Vec<u8>,
    by: Option<Identity>,
    socket: OwnedFd,
}

/// The work in progress.
struct Maker<'m, 'r> {
    restore: &'m mut Restore<'r>,
    processes: &'m mut [Process],
    /// The other ends of sockets whose peer is gone: closed when the queue is filled.
    partners: HashMap<usize, OwnedFd>,
    /// Listeners of ours that connections are made with.
    listeners: Vec<Listener>,
    /// Connections that are not accepted yet and whose other end nobody holds: closed when their content is sent.
    gone: Vec<(OwnedFd, &'r [Queued])>,
}

impl<'r> Maker<'_, 'r> {
    fn state(&self, wanted: usize) -> Result<&'r State, Error> {
        state(self.restore, wanted).ok_or_else(|| bad_state("a unix socket", "it is none"))
    }

    fn process(&mut self, identity: Option<Identity>) -> Option<&mut Process> {
        let number = identity?.process?;
        self.processes.iter_mut().find(|p| p.inside() == number)
    }

    fn new_socket(&self, kind: i32) -> Result<OwnedFd, Error> {
        new_socket(self.restore.live, kind)
    }

    /// Sockets that are not connected, and all those of datagrams.
    fn plain(&mut self, wanted: usize) -> Result<(), Error> {
        let state = self.state(wanted)?;
        if self.restore.made[wanted].is_some() {
            return Ok(());
        }
        match &state.role {
            Role::Listening { backlog, .. } => {
                let socket = self.new_socket(state.kind)?;
                unix_name::bind(self.restore, &socket, &state.name, state.file.as_ref())?;
                self.listen(&socket, state.credentials, *backlog)?;
                self.restore.made[wanted] = Some(socket);
            }
            Role::Idle => {
                let socket = self.new_socket(state.kind)?;
                unix_name::bind(self.restore, &socket, &state.name, state.file.as_ref())?;
                self.restore.made[wanted] = Some(socket);
            }
            Role::Connected { peer } if state.kind == libc::SOCK_DGRAM => {
                if let Some(peer) = *peer
                    && self.is_pair(wanted, peer as usize)
                {
                    return self.pair(wanted, peer as usize);
                }
                if peer.is_none() && state.name.len() <= 2 {
                    let (socket, partner) = self.socket_pair(state.kind, state.credentials)?;
                    self.restore.made[wanted] = Some(socket);
                    self.partners.insert(wanted, partner);
                    return Ok(());
                }
                let socket = self.new_socket(state.kind)?;
                unix_name::bind(self.restore, &socket, &state.name, state.file.as_ref())?;
                self.restore.made[wanted] = Some(socket);
            }
            Role::Connected { .. } | Role::Waiting { .. } => {}
        }
        Ok(())
    }

    /// Two sockets without names that are connected to each other.
    fn is_pair(&self, a: usize, b: usize) -> bool {
        let unnamed = |w| state(self.restore, w).filter(|s| s.name.len() <= 2);
        let (Some(_), Some(other)) = (unnamed(a), unnamed(b)) else {
            return false;
        };
        other.role == Role::Connected { peer: Some(a as u32) }
    }

    fn connected(&mut self, wanted: usize) -> Result<(), Error> {
        let state = self.state(wanted)?;
        let Role::Connected { peer } = state.role else {
            return Ok(());
        };
        if state.kind == libc::SOCK_DGRAM {
            return self.connect_datagrams(wanted, peer);
        }
        if self.restore.made[wanted].is_some() {
            return Ok(());
        }
        match peer {
            Some(peer) => self.pair(wanted, peer as usize),
            None => {
                let (socket, partner) = self.ends(state, None)?;
                if state.is_reset {
                    // For the partner to leave unread.
                    unix_queue::put(socket.as_fd(), &[0], Attachments::default())
                        .map_err(making("a connection that was reset"))?;
                }
                self.restore.made[wanted] = Some(socket);
                self.partners.insert(wanted, partner);
                Ok(())
            }
        }
    }

    fn connect_datagrams(&mut self, wanted: usize, peer: Option<u32>) -> Result<(), Error> {
        let Some(peer) = peer.map(|p| p as usize) else {
            return Ok(());
        };
        if self.is_pair(wanted, peer) {
            return Ok(());
        }
        let socket = self.restore.object(wanted)?;
        let way = self.way(peer)?;
        connect(socket, &way.address()).map_err(making(self.restore.show(wanted)))
    }

    fn way(&self, wanted: usize) -> Result<Way, Error> {
        Way::to(self.restore.object(wanted)?).map_err(making(self.restore.show(wanted)))
    }

    fn pair(&mut self, a: usize, b: usize) -> Result<(), Error> {
        let (first, second) = (self.state(a)?, self.state(b)?);
        // The one with a name was accepted by the listener of that name.
        let (accepted, other) = if first.name.len() > 2 { (a, b) } else { (b, a) };
        let (accepted_end, other_end) = if first.name.len() > 2 {
            self.ends(first, Some(second))?
        } else {
            self.ends(second, Some(first))?
        };
        self.restore.made[accepted] = Some(accepted_end);
        self.restore.made[other] = Some(other_end);
        Ok(())
    }

    /// Both ends of a connection, the one described by `accepted` first.
    fn ends(&mut self, accepted: &State, other: Option<&State>) -> Result<(OwnedFd, OwnedFd), Error> {
        let other_credentials = other.map_or(accepted.credentials, |s| s.credentials);
        let unnamed = accepted.name.len() <= 2 && other.is_none_or(|s| s.name.len() <= 2);
        if unnamed && accepted.credentials == other_credentials {
            return self.socket_pair(accepted.kind, accepted.credentials);
        }
        let client = self.new_socket(accepted.kind)?;
        if let Some(state) = other {
            unix_name::bind(self.restore, &client, &state.name, None)?;
        }
        let failed = || making("a connection of unix sockets");
        let listener = match self.holder_of(&accepted.name) {
            Some(wanted) => self.restore.object(wanted)?,
            None => {
                let ours = self.listener(accepted.kind, &accepted.name, other_credentials)?;
                self.listeners[ours].socket.as_fd()
            }
        };
        let listener = listener.try_clone_to_owned().map_err(failed())?;
        let way = Way::to(listener.as_fd()).map_err(failed())?;
        self.connect(&client, accepted.credentials, &way)?;
        let accepted_end = rustix::net::accept_with(&listener, SocketFlags::CLOEXEC).map_err(io::Error::from);
        Ok((accepted_end.map_err(failed())?, client))
    }

    /// The wanted listener that has an abstract name, which no other can have.
    fn holder_of(&self, name: &[u8]) -> Option<usize> {
        (0..self.restore.wanted.descriptions.len()).find(|&w| {
            is_abstract(name)
                && (self.restore.kept[w].is_some() || self.restore.made[w].is_some())
                && state(self.restore, w)
                    .is_some_and(|s| matches!(s.role, Role::Listening { .. }) && s.name == name)
        })
    }

    /// A listener of ours with this name, as if made by that process.
    fn listener(&mut self, kind: i32, name: &[u8], by: Option<Identity>) -> Result<usize, Error> {
        let is_it = |l: &Listener| (l.kind, l.name.as_slice(), l.by) == (kind, name, by);
        if let Some(known) = self.listeners.iter().position(is_it) {
            return Ok(known);
        }
        let socket = self.new_socket(kind)?;
        match unix_name::path(name) {
            Some(_) => unix_name::bind(self.restore, &socket, name, None)?,
            // Nameless, but of two processes: any free abstract name will do, and is not kept by what is accepted.
            None => bind(&socket, &(libc::AF_UNIX as u16).to_ne_bytes())
                .map_err(making("the name of a unix socket"))?,
        }
        self.listen(&socket, by, 1)?;
        self.listeners.push(Listener {
            kind,
            name: name.to_vec(),
            by,
            socket,
        });
        Ok(self.listeners.len() - 1)
    }

    fn socket_pair(&mut self, kind: i32, by: Option<Identity>) -> Result<(OwnedFd, OwnedFd), Error> {
        let Some(process) = self.process(by) else {
            return socketpair(AddressFamily::UNIX, socket_type(kind), SocketFlags::CLOEXEC, None)
                .map_err(making("a pair of unix sockets"));
        };
        let mut batch = crate::inject::Batch::new();
        let pair = batch.output(8);
        let flags = Arg::from(kind | libc::SOCK_CLOEXEC);
        let call = batch.call(
            libc::SYS_socketpair,
            &[Arg::from(libc::AF_UNIX), flags, Arg::from(0), pair.into()],
        );
        process.run(&mut batch)?;
        batch.result(call).map_err(|source: Errno| Error::Act {
            process: process.inside(),
            what: "make a pair of unix sockets",
            source: source.into(),
        })?;
        let bytes = batch.bytes(pair).to_vec();
        let fd = |at: usize| i32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let first = borrow::take(process, fd(0));
        let second = borrow::take(process, fd(4));
        Ok((first?, second?))
    }

    fn listen(&mut self, socket: &OwnedFd, by: Option<Identity>, backlog: u32) -> Result<(), Error> {
        let Some(process) = self.process(by) else {
            return rustix::net::listen(socket, backlog as i32).map_err(making("a listening unix socket"));
        };
        borrow::with_object(process, socket.as_fd(), None, |process, fd| {
            borrow::call(process, "listen on a unix socket", |batch| {
                batch.call(libc::SYS_listen, &[Arg::from(fd), Arg::from(backlog as i32)])
            })
        })
        .map(drop)
    }

    fn connect(&mut self, socket: &OwnedFd, by: Option<Identity>, way: &Way) -> Result<(), Error> {
        connect_by(self.process(by), socket, way)
    }

    /// Those who wait at a listener connect again, in their order.
    fn waiting(&mut self, wanted: usize) -> Result<(), Error> {
        let state = self.state(wanted)?;
        let Role::Listening { waiting, .. } = &state.role else {
            return Ok(());
        };
        if waiting.is_empty() || unix_backlog::has_waiting(self.restore.object(wanted)?)? {
            return Ok(());
        }
        let way = self.way(wanted)?;
        for waiter in waiting {
            let socket = self.new_socket(state.kind)?;
            // Never wait: with as many as before there is room.
            let flags = rustix::fs::OFlags::NONBLOCK;
            rustix::fs::fcntl_setfl(&socket, flags).map_err(making("a unix socket"))?;
            let Some(client) = waiter.client else {
                self.connect(&socket, waiter.by, &way)?;
                self.gone.push((socket, &waiter.sent));
                continue;
            };
            let client = client as usize;
            let of_client = self.state(client)?;
            if matches!(of_client.role, Role::Waiting { sent } if sent > 0) {
                let (end, _closed) = self.socket_pair(state.kind, of_client.credentials)?;
                self.connect(&socket, None, &way)?;
                self.restore.made[client] = Some(end);
                continue;
            }
            unix_name::bind(self.restore, &socket, &of_client.name, None)?;
            let by = waiter.by.or_else(|| holder(self.restore, client));
            self.connect(&socket, by, &way)?;
            self.restore.made[client] = Some(socket);
        }
        Ok(())
    }

    /// Sends into connections that nobody accepts yet and whose clients are gone.
    fn fill_waiting(&mut self) -> Result<(), Error> {
        for (socket, sent) in std::mem::take(&mut self.gone) {
            for message in sent {
                let descriptors = self.attached(message)?;
                let with = attachments(self.restore.live, message, &descriptors);
                unix_queue::put(socket.as_fd(), &message.bytes, with)
                    .map_err(making("a connection not accepted yet"))?;
            }
        }
        Ok(())
    }

    /// Puts the wanted content into every queue.
    fn fill(&mut self, sockets: &[usize]) -> Result<(), Error> {
        let serves = serves(self.restore);
        for &wanted in sockets {
            let state = self.state(wanted)?;
            if matches!(state.role, Role::Listening { .. } | Role::Waiting { .. }) {
                continue;
            }
            if let Some(live) = self.restore.kept[wanted] {
                if queue_is_right(self.restore, &serves, state, live)? {
                    continue;
                }
                let socket = self.restore.object(wanted)?;
                // An error of the time that is undone would hide what is to be taken out.
                int_option(socket, libc::SOL_SOCKET, libc::SO_ERROR).map_err(making("a unix socket"))?;
                unix_queue::drain(socket).map_err(making("the queue of a unix socket"))?;
                // Credentials are put in where they were, not by a request that came later.
                set_int_option(socket, libc::SOL_SOCKET, libc::SO_PASSCRED, 0)
                    .map_err(making("a unix socket"))?;
            }
            for message in &state.queue {
                self.put(wanted, state, message)?;
            }
        }
        self.partners.clear();
        Ok(())
    }

    /// The descriptors that come with a message.
    fn attached(&self, message: &Queued) -> Result<Vec<BorrowedFd<'_>>, Error> {
        let all = message.descriptors.iter();
        all.map(|&d| self.restore.object(d as usize)).collect()
    }

    fn put(&self, wanted: usize, state: &State, message: &Queued) -> Result<(), Error> {
        let failed = || making(format!("the queue of {}", self.restore.show(wanted)));
        let descriptors = self.attached(message)?;
        let with = attachments(self.restore.live, message, &descriptors);
        if let Some(partner) = self.partners.get(&wanted) {
            return unix_queue::put(partner.as_fd(), &message.bytes, with).map_err(failed());
        }
        let is_datagram = state.kind == libc::SOCK_DGRAM;
        if let Role::Connected { peer: Some(peer) } = state.role
            && (!is_datagram || self.is_pair(wanted, peer as usize))
        {
            let sender = self.restore.object(peer as usize)?;
            apply_send_buffer(sender, self.state(peer as usize)?).map_err(failed())?;
            return unix_queue::put(sender, &message.bytes, with).map_err(failed());
        }
        let sender = match self.socket_named(&message.sender) {
            Some(sender) => self
                .restore
                .object(sender)?
                .try_clone_to_owned()
                .map_err(failed())?,
            None => unix_renew::stand_in(self.restore.live, &message.sender)?,
        };
        let way = self.way(wanted)?;
        let address = way.address();
        let with = Attachments {
            address: &address,
            ..with
        };
        unix_queue::put(sender.as_fd(), &message.bytes, with).map_err(failed())
    }

    /// The wanted socket that has an abstract name, which no other can have; a path may be the name of many.
    fn socket_named(&self, name: &[u8]) -> Option<usize> {
        let named =
            |w: &usize| state(self.restore, *w).is_some_and(|s| s.kind == libc::SOCK_DGRAM && s.name == name);
        (0..self.restore.wanted.descriptions.len()).find(|w| is_abstract(name) && named(w))
    }

    /// Connects a datagram socket to one that is gone, which nobody else could have sent past.
    fn connect_to_nobody(&self, wanted: usize, state: &State) -> Result<(), Error> {
        let failed = || making(self.restore.show(wanted));
        let is_it = state.kind == libc::SOCK_DGRAM && state.role == (Role::Connected { peer: None });
        if !is_it || state.name.len() <= 2 || self.restore.made[wanted].is_none() {
            return Ok(());
        }
        let nobody = self.new_socket(state.kind)?;
        // The kernel finds a name.
        bind(&nobody, &(libc::AF_UNIX as u16).to_ne_bytes()).map_err(failed())?;
        let way = Way::to(nobody.as_fd()).map_err(failed())?;
        connect(self.restore.object(wanted)?, &way.address()).map_err(failed())
    }

    /// Options and shutdowns, now that nothing has to be sent any more.
    fn finish(&mut self, sockets: &[usize]) -> Result<(), Error> {
        for &wanted in sockets {
            let state = self.state(wanted)?;
            self.connect_to_nobody(wanted, state)?;
            let socket = self.restore.object(wanted)?;
            let failed = || making(self.restore.show(wanted));
            options::restore(socket, Family::Unix, &state.options).map_err(failed())?;
            let how = match state.shutdown {
                0 => continue,
                1 => Shutdown::Read,
                2 => Shutdown::Write,
                _ => Shutdown::Both,
            };
            match rustix::net::shutdown(socket, how) {
                Ok(()) | Err(Errno::NOTCONN) => {}
                Err(e) => return Err(failed()(e.into())),
            }
        }
        Ok(())
    }
}

/// A socket of the sandbox.
pub(super) fn new_socket(live: &Live, kind: i32) -> Result<OwnedFd, Error> {
    let (family, flags) = (AddressFamily::UNIX, SocketFlags::CLOEXEC);
    let make = || Ok(socket_with(family, socket_type(kind), flags, None)?);
    room::inside(live, None, make).map_err(making("a unix socket"))
}

/// Connects a socket, in the process that is to be known as the one that did, if it is there.
pub(super) fn connect_by(process: Option<&mut Process>, socket: &OwnedFd, way: &Way) -> Result<(), Error> {
    let Some(process) = process else {
        return connect(socket, &way.address()).map_err(making("a connection of unix sockets"));
    };
    let call = |process: &mut Process, fd, address: &[u8]| {
        borrow::call(process, "connect a unix socket", |batch| {
            let bytes = batch.input(address);
            let len = Arg::from(address.len() as i32);
            batch.call(libc::SYS_connect, &[Arg::from(fd), bytes.into(), len])
        })
    };
    borrow::with_object(process, socket.as_fd(), None, |process, fd| match way {
        Way::Name(name) => call(process, fd, name),
        Way::File(file) => borrow::with_object(process, file.as_fd(), None, |process, at| {
            call(process, fd, &unix_name::address_of(at))
        }),
    })
    .map(drop)
}

/// What comes with a message.
pub(super) fn attachments<'a>(
    live: &Live,
    message: &Queued,
    descriptors: &'a [BorrowedFd<'a>],
) -> Attachments<'a> {
    let credentials = message.credentials.and_then(|identity| {
        let pid = live.outside(identity.process?)?;
        Some(Credentials {
            pid: pid.as_raw_nonzero().get(),
            uid: live.first_id.outside(identity.uid),
            gid: live.first_id.outside(identity.gid),
        })
    });
    Attachments {
        address: &[],
        descriptors,
        credentials,
        end_of_record: message.end_of_record,
    }
}

fn apply_send_buffer(socket: BorrowedFd<'_>, state: &State) -> std::io::Result<()> {
    let is_size = |o: &&options::Opt| (o.level, o.name) == (libc::SOL_SOCKET, libc::SO_SNDBUF);
    let only: Vec<_> = state.options.iter().filter(is_size).cloned().collect();
    if only.is_empty() {
        Ok(())
    } else {
        options::set_some(socket, &only)
    }
}

/// The process that is to be the peer of what it connects: the first that holds the socket.
fn holder(restore: &Restore<'_>, wanted: usize) -> Option<Identity> {
    let table = restore
        .wanted
        .processes
        .iter()
        .find(|t| t.slots.iter().any(|s| s.description as usize == wanted))?;
    Some(Identity {
        process: Some(table.process),
        uid: 0,
        gid: 0,
    })
}

fn socket_type(kind: i32) -> SocketType {
    SocketType::from_raw(kind as u32)
}
