//! Netlink sockets: protocol, port, groups. An answer of the kernel that waits cannot be put back, so there must be
//! none at a checkpoint; at a rollback what waits is thrown away.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use deltabox_sys::socket::{bind, int_option, local_address, option, receive, set_int_option};
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType, socket_with};
use serde::{Deserialize, Serialize};

use super::error::{Error, making};
use super::options::{self, Family, Opt};
use super::restore::Restore;
use super::room;
use super::tables::Kind;

/// A netlink socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    pub kind: i32,
    pub protocol: i32,
    pub options: Vec<Opt>,
    /// Family, port and the first 32 groups.
    pub local: Vec<u8>,
    /// All groups it is a member of.
    pub groups: Vec<u32>,
}

pub(super) fn survey(socket: BorrowedFd<'_>) -> Result<Option<(&'static str, &'static str)>, Error> {
    if receive(socket, 0, true)
        .map_err(making("a netlink socket"))?
        .is_some()
    {
        return Ok(Some((
            "a message of the kernel waits in it, which cannot be put back",
            "let the program read it, then try again",
        )));
    }
    Ok(None)
}

pub(super) fn capture(socket: BorrowedFd<'_>) -> Result<State, Error> {
    let look = || -> io::Result<State> {
        Ok(State {
            kind: int_option(socket, libc::SOL_SOCKET, libc::SO_TYPE)?,
            protocol: int_option(socket, libc::SOL_SOCKET, libc::SO_PROTOCOL)?,
            options: options::read(socket, Family::Netlink)?,
            local: local_address(socket)?,
            groups: groups(socket)?,
        })
    };
    look().map_err(making("a netlink socket"))
}

/// `NETLINK_LIST_MEMBERSHIPS`: a bit set, group 1 first.
fn groups(socket: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut bits = [0; 128];
    let len = option(
        socket,
        libc::SOL_NETLINK,
        libc::NETLINK_LIST_MEMBERSHIPS,
        &mut bits,
    )?;
    let is_set = |group: &u32| bits[(*group as usize - 1) / 8] & (1 << ((group - 1) % 8)) != 0;
    Ok((1..=(len.min(bits.len()) * 8) as u32).filter(is_set).collect())
}

fn wanted_sockets<'a>(restore: &Restore<'a>) -> Vec<(usize, &'a State)> {
    let all = restore.wanted.descriptions.iter().enumerate();
    all.filter_map(|(wanted, d)| match &d.kind {
        Kind::Netlink(state) => Some((wanted, state)),
        _ => None,
    })
    .collect()
}

/// Lets go of sockets with another port or protocol.
pub(super) fn release_unfit(restore: &mut Restore<'_>) -> Result<(), Error> {
    for (wanted, state) in wanted_sockets(restore) {
        let Some(live) = restore.kept[wanted] else {
            continue;
        };
        let now = capture(restore.live.duplicate(live)?.as_fd())?;
        let same_port = now.local.get(4..8) == state.local.get(4..8);
        if (now.kind, now.protocol) != (state.kind, state.protocol) || !same_port {
            restore.kept[wanted] = None;
        }
    }
    Ok(())
}

pub(super) fn restore_all(restore: &mut Restore<'_>) -> Result<(), Error> {
    for (wanted, state) in wanted_sockets(restore) {
        let failed = |restore: &Restore<'_>| making(restore.show(wanted));
        if restore.kept[wanted].is_none() {
            let made = room::inside(restore.live, None, || make(state));
            restore.made[wanted] = Some(made.map_err(failed(restore))?);
        }
        let socket = restore.object(wanted)?;
        adjust(socket, state).map_err(failed(restore))?;
    }
    Ok(())
}

fn make(state: &State) -> io::Result<OwnedFd> {
    let protocol = std::num::NonZeroU32::new(state.protocol as u32).map(Protocol::from_raw);
    let kind = SocketType::from_raw(state.kind as u32);
    let socket = socket_with(AddressFamily::NETLINK, kind, SocketFlags::CLOEXEC, protocol)?;
    if state.local.get(4..8).is_some_and(|port| port != [0; 4]) {
        bind(&socket, &state.local)?;
    }
    Ok(socket)
}

fn adjust(socket: BorrowedFd<'_>, state: &State) -> io::Result<()> {
    const ADD: i32 = libc::NETLINK_ADD_MEMBERSHIP;
    const DROP: i32 = libc::NETLINK_DROP_MEMBERSHIP;
    let now = groups(socket)?;
    for group in state.groups.iter().filter(|g| !now.contains(g)) {
        set_int_option(socket, libc::SOL_NETLINK, ADD, group.cast_signed())?;
    }
    for group in now.iter().filter(|g| !state.groups.contains(g)) {
        set_int_option(socket, libc::SOL_NETLINK, DROP, group.cast_signed())?;
    }
    while receive(socket, 65536, false)?.is_some() {}
    options::restore(socket, Family::Netlink, &state.options)
}
