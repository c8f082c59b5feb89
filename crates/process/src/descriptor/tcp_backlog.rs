//! TCP connections that nobody has accepted yet, with what was sent into them.
//!
//! Only accepting such a connection shows what is in it, and in which order they come. So they are accepted by our
//! side, and put back at once, while everything stands still: both ends are made to forget the connection without a
//! word (tcp(7), `TCP_REPAIR`), and the same client connects again from the same port and sends the same. Where the
//! clients have done nothing since the checkpoint before, that one's findings are used again.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use deltabox_sys::socket::{
    Attachments, bind, connect, int_option, local_address, peer_address, send, set_int_option,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{Shutdown, SocketFlags, accept_with, shutdown};

use super::diag::unaccepted;
use super::error::{Error, making};
use super::live::Live;
use super::room;
use super::tables::{Kind, Tables};
use super::tcp::{self, Connection, Peer, Role, State, Waiter};
use super::tcp_make;

/// Completes what is known of listeners that somebody waits at.
pub(super) fn capture(live: &Live, previous: Option<&Tables>, tables: &mut Tables) -> Result<(), Error> {
    for at in 0..tables.descriptions.len() {
        let Some((count, waiting)) = listening(tables, at) else {
            continue;
        };
        let (count, waiting) = (count as usize, waiting.to_vec());
        let used = waiting
            .iter()
            .filter_map(|w| w.client)
            .any(|c| has_sent(tables, c));
        // Alone and silent, there is nothing to find out.
        if count == 0 || (count == 1 && waiting.len() == 1 && !used) {
            continue;
        }
        let found = match previous.and_then(|previous| known(previous, tables, at)) {
            Some(known) => known,
            None => {
                let address = &state(tables, at).ok_or_else(not_there)?.local;
                let others = room::inside(live, None, || unaccepted(tcp::port(address)));
                let others = others.map_err(making("the list of TCP connections"))?;
                if others
                    .iter()
                    .any(|(local, remote)| !tcp::is_inside(local, remote))
                {
                    if used {
                        return Err(live.refusal(
                            at,
                            "connections wait in it, with data, together with others from outside of the sandbox",
                            "have the program accept them, and try again",
                        ));
                    }
                    continue;
                }
                lift(live, tables, at, count).map_err(making("connections not accepted yet"))?
            }
        };
        if let Some(State {
            role: Role::Listening { waiting, .. },
            ..
        }) = state_mut(tables, at)
        {
            *waiting = found;
        }
    }
    Ok(())
}

fn not_there() -> Error {
    making("a TCP socket")(io::Error::from(io::ErrorKind::NotFound))
}

fn state(tables: &Tables, at: usize) -> Option<&State> {
    match &tables.descriptions.get(at)?.kind {
        Kind::Tcp(state) => Some(state),
        _ => None,
    }
}

fn state_mut(tables: &mut Tables, at: usize) -> Option<&mut State> {
    match &mut tables.descriptions.get_mut(at)?.kind {
        Kind::Tcp(state) => Some(state),
        _ => None,
    }
}

fn listening(tables: &Tables, at: usize) -> Option<(u32, &[Waiter])> {
    match &state(tables, at)?.role {
        Role::Listening { count, waiting, .. } => Some((*count, waiting)),
        _ => None,
    }
}

fn connection(tables: &Tables, at: usize) -> Option<&Connection> {
    match &state(tables, at)?.role {
        Role::Connected(connection) => Some(connection),
        _ => None,
    }
}

fn has_sent(tables: &Tables, client: u32) -> bool {
    // The counter starts at one, for the handshake.
    connection(tables, client as usize).is_some_and(|c| c.counters.1 > 1)
}

/// What an earlier checkpoint found, if nothing has happened to the listener's clients since.
fn known(previous: &Tables, tables: &Tables, at: usize) -> Option<Vec<Waiter>> {
    let object = tables.descriptions[at].object;
    let before = previous.descriptions.iter().position(|d| d.object == object)?;
    let (count, waiting) = listening(tables, at)?;
    let (count_before, known) = listening(previous, before)?;
    if count != count_before || count as usize != known.len() || waiting.len() != known.len() {
        return None;
    }
    let again = |waiter: &Waiter| {
        let client = waiter.client? as usize;
        let (object, was) = (
            previous.descriptions[client].object,
            connection(previous, client)?,
        );
        let now = waiting.iter().filter_map(|w| w.client).find(|&c| {
            let is_same = tables.descriptions[c as usize].object == object;
            is_same && connection(tables, c as usize).is_some_and(|now| now.counters == was.counters)
        })?;
        Some(Waiter {
            client: Some(now),
            ..waiter.clone()
        })
    };
    known.iter().map(again).collect()
}

/// Accepts all, and puts them back.
fn lift(live: &Live, tables: &mut Tables, at: usize, count: usize) -> io::Result<Vec<Waiter>> {
    let listener = duplicate(live, at)?;
    let mut accepted = Vec::with_capacity(count);
    while accepted.len() < count && is_ready(listener.as_fd(), PollFlags::IN, &Timespec::default())? {
        let socket = accept_with(&listener, SocketFlags::CLOEXEC)?;
        let waiter = look(live, tables, socket.as_fd());
        accepted.push((socket, waiter));
    }
    // All have to be gone before the first comes again, or a client could meet itself.
    let mut found = Vec::with_capacity(count);
    for (socket, waiter) in accepted {
        tcp_make::forget(socket.as_fd())?;
        found.push(waiter?);
    }
    for waiter in &found {
        match waiter.client {
            Some(client) => {
                let socket = duplicate(live, client as usize)?;
                connect_again(socket.as_fd(), waiter)?;
                renew_state(tables, client as usize, at, socket.as_fd())?;
            }
            None => {
                let make = || tcp_make::come_again(&waiter.from, &waiter.to, waiter).map(drop);
                room::inside(live, None, make)?;
            }
        }
    }
    Ok(found)
}

fn duplicate(live: &Live, at: usize) -> io::Result<OwnedFd> {
    live.duplicate(at).map_err(io::Error::other)
}

fn is_ready(socket: BorrowedFd<'_>, what: PollFlags, wait: &Timespec) -> io::Result<bool> {
    let mut asked = [PollFd::from_borrowed_fd(socket, what)];
    Ok(poll(&mut asked, Some(wait))? > 0)
}

/// What is in a connection that has just been accepted, and who is at its other end.
fn look(live: &Live, tables: &Tables, accepted: BorrowedFd<'_>) -> io::Result<Waiter> {
    let (local, from) = (local_address(accepted)?, peer_address(accepted)?);
    let is_client = |at: &usize| {
        let ends = |state: &State, c: &Connection| {
            tcp::end(&state.local) == tcp::end(&from) && tcp::end(&c.remote) == tcp::end(&local)
        };
        state(tables, *at).is_some_and(|s| matches!(&s.role, Role::Connected(c) if ends(s, c)))
    };
    let client = (0..tables.descriptions.len()).find(is_client);
    let (data, finished) = match client {
        Some(client) => {
            let socket = duplicate(live, client)?;
            let (received, unsent) = tcp::in_flight(socket.as_fd(), accepted)?;
            ([received, unsent].concat(), tcp::info(socket.as_fd())?.finished())
        }
        None => (tcp::peek_received(accepted)?, true),
    };
    Ok(Waiter {
        client: client.map(|c| c as u32),
        from,
        to: local,
        data,
        finished,
    })
}

/// Has a client's own socket connect and send once more.
fn connect_again(socket: BorrowedFd<'_>, waiter: &Waiter) -> io::Result<()> {
    const PATIENCE: Timespec = Timespec {
        tv_sec: 1,
        tv_nsec: 0,
    };
    let (local, remote) = (local_address(socket)?, peer_address(socket)?);
    let reuse = int_option(socket, libc::SOL_SOCKET, libc::SO_REUSEADDR)?;
    tcp_make::forget(socket)?;
    match bind(socket, &local) {
        // A port that the program chose itself is kept.
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {}
        other => other?,
    }
    set_int_option(
        socket,
        libc::IPPROTO_TCP,
        tcp::TCP_REPAIR,
        tcp::REPAIR_OFF_SILENTLY,
    )?;
    set_int_option(socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, reuse)?;
    match connect(socket, &remote) {
        Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => {
            is_ready(socket, PollFlags::OUT, &PATIENCE)?;
        }
        other => other?,
    }
    let mut rest = waiter.data.as_slice();
    while !rest.is_empty() {
        match send(socket, rest, Attachments::default()) {
            Ok(sent) => rest = &rest[sent..],
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => tcp_make::make_room(socket, rest.len())?,
            Err(e) => return Err(e),
        }
    }
    if waiter.finished {
        shutdown(socket, Shutdown::Write)?;
    }
    Ok(())
}

/// Notes how far the new connection has come, by which it is known from now on.
fn renew_state(
    tables: &mut Tables,
    client: usize,
    listener: usize,
    socket: BorrowedFd<'_>,
) -> io::Result<()> {
    let (info, sent) = tcp::progress(socket)?;
    if let Some(State {
        role: Role::Connected(connection),
        ..
    }) = state_mut(tables, client)
    {
        connection.peer = Peer::At(listener as u32);
        connection.counters = (info.received(), sent);
        connection.unsent.clear();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn the_same_socket_connects_once_more() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.write_all(b"hello").unwrap();
        let (accepted, from) = listener.accept().unwrap();
        tcp_make::forget(accepted.as_fd()).unwrap();
        drop(accepted);
        let waiter = Waiter {
            client: Some(0),
            from: Vec::new(),
            to: Vec::new(),
            data: b"hello".to_vec(),
            finished: true,
        };
        connect_again(client.as_fd(), &waiter).unwrap();
        let (mut again, from_again) = listener.accept().unwrap();
        assert_eq!(from_again, from);
        let mut text = String::new();
        again.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
        again.write_all(b"back").unwrap();
        drop(again);
        client.read_to_string(&mut text).unwrap();
        assert_eq!(text, "helloback");
    }
}
