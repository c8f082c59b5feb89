//! Which live unix sockets can be changed into the wanted ones, all their relations considered.

use std::collections::HashMap;
use std::os::fd::AsFd;

use deltabox_sys::socket::{int_option, local_address};

use super::error::{Error, making};
use super::restore::Restore;
use super::tables::Kind;
use super::unix::{self, Now, Queue, Role, State, Waiter};
use super::{unix_backlog, unix_name};

pub(super) fn state<'a>(restore: &Restore<'a>, wanted: usize) -> Option<&'a State> {
    match &restore.wanted.descriptions[wanted].kind {
        Kind::Unix(state) => Some(state),
        _ => None,
    }
}

pub(super) fn sockets(restore: &Restore<'_>) -> Vec<usize> {
    (0..restore.wanted.descriptions.len())
        .filter(|&w| state(restore, w).is_some())
        .collect()
}

/// Lets go of live sockets that cannot be changed into what is wanted of them.
pub(super) fn release_unfit(restore: &mut Restore<'_>) -> Result<(), Error> {
    let sockets = sockets(restore);
    if sockets.is_empty() {
        return Ok(());
    }
    let now = Now::read(restore.live)?;
    loop {
        let serves = serves(restore);
        let mut unfit = Vec::new();
        for &wanted in &sockets {
            if let (Some(live), Some(state)) = (restore.kept[wanted], state(restore, wanted))
                && !fits(restore, &now, &serves, state, live)?
            {
                unfit.push(wanted);
            }
        }
        unfit.extend(crowded_listeners(restore, &sockets));
        unfit.extend(stranded(restore, &sockets));
        if unfit.is_empty() {
            return Ok(());
        }
        for wanted in unfit {
            restore.kept[wanted] = None;
        }
    }
}

/// Live positions and what they serve as.
pub(super) fn serves(restore: &Restore<'_>) -> HashMap<usize, u32> {
    let kept = restore.kept.iter().enumerate();
    kept.filter_map(|(wanted, live)| Some(((*live)?, wanted as u32)))
        .collect()
}

/// Those who wait at a listener that is made anew have to connect to it again.
fn stranded(restore: &Restore<'_>, sockets: &[usize]) -> Vec<usize> {
    let new = sockets.iter().filter(|&&w| restore.kept[w].is_none());
    new.filter_map(|&w| match &state(restore, w)?.role {
        Role::Listening { waiting, .. } => Some(waiting.iter().filter_map(|w| w.client)),
        _ => None,
    })
    .flatten()
    .map(|client| client as usize)
    .filter(|&client| restore.kept[client].is_some())
    .collect()
}

/// Listeners with abstract names that somebody waits at cannot help to make another connection.
fn crowded_listeners(restore: &Restore<'_>, sockets: &[usize]) -> Vec<usize> {
    let missing: Vec<&State> = sockets
        .iter()
        .filter(|&&w| restore.kept[w].is_none())
        .filter_map(|&w| state(restore, w))
        .filter(|s| matches!(s.role, Role::Connected { .. }) && is_abstract(&s.name))
        .collect();
    let crowded = |wanted: &usize| {
        restore.kept[*wanted].is_some()
            && state(restore, *wanted).is_some_and(|s| {
                matches!(&s.role, Role::Listening { waiting, .. } if !waiting.is_empty())
                    && missing.iter().any(|m| m.name == s.name)
            })
    };
    sockets.iter().copied().filter(crowded).collect()
}

pub(super) fn is_abstract(name: &[u8]) -> bool {
    name.get(2) == Some(&0)
}

fn fits(
    restore: &Restore<'_>,
    now: &Now,
    serves: &HashMap<usize, u32>,
    wanted: &State,
    live: usize,
) -> Result<bool, Error> {
    let socket = restore.live.duplicate(live)?;
    let failed = || making("a unix socket");
    let kind = int_option(&socket, libc::SOL_SOCKET, libc::SO_TYPE).map_err(failed())?;
    let found = now.of(restore.live, live);
    let connected = unix::was_connected(socket.as_fd())?;
    let mut role = translate(unix::role(now, restore.live, live, kind, connected), serves);
    if let Role::Waiting { sent } = &mut role {
        *sent = unix_backlog::sent(restore.live, live)?;
    }
    let file_is_right = match &wanted.file {
        Some(place) => unix_name::leads_to(restore.environment.root, place, socket.as_fd())?,
        None if unix::is_found(kind, &wanted.role) => {
            unix_name::file_of(restore.live, socket.as_fd())?.is_none()
        }
        None => true,
    };
    let same = kind == wanted.kind
        && file_is_right
        && is_role(&wanted.role, &role)
        && found.shutdown & !wanted.shutdown == 0
        && local_address(&socket).map_err(failed())? == wanted.name
        && unix::credentials(restore.live, socket.as_fd())? == wanted.credentials;
    if !same || matches!(wanted.role, Role::Listening { .. }) {
        return Ok(same);
    }
    let queue = unix::queue(restore.live, live)?;
    if kind == libc::SOCK_STREAM && queue.has_error != wanted.is_reset {
        return Ok(false);
    }
    // A queue can only be refilled by somebody who can still send to it.
    let reachable = found.shutdown & 1 == 0 && !matches!(wanted.role, Role::Connected { peer: None });
    Ok(reachable || is_queue(queue, serves, wanted))
}

/// Clients can be connected to a listener that nobody waits at. What they have sent, they know themselves.
fn is_role(wanted: &Role, now: &Role) -> bool {
    match (wanted, now) {
        (
            Role::Listening { backlog, waiting },
            Role::Listening {
                backlog: backlog_now,
                waiting: now,
            },
        ) => {
            let clients =
                |waiting: &[Waiter]| -> Option<Vec<u32>> { waiting.iter().map(|w| w.client).collect() };
            let same = clients(waiting).is_some() && clients(waiting) == clients(now);
            backlog == backlog_now && (now.is_empty() || same)
        }
        _ => wanted == now,
    }
}

fn translate(role: Role, serves: &HashMap<usize, u32>) -> Role {
    // What serves as nothing must not look like "nobody".
    let one = |live: u32| serves.get(&(live as usize)).copied().unwrap_or(u32::MAX);
    match role {
        Role::Listening { backlog, waiting } => Role::Listening {
            backlog,
            waiting: waiting
                .into_iter()
                .map(|w| Waiter {
                    client: w.client.map(one),
                    ..w
                })
                .collect(),
        },
        Role::Connected { peer } => Role::Connected { peer: peer.map(one) },
        Role::Idle => Role::Idle,
        Role::Waiting { sent } => Role::Waiting { sent },
    }
}

pub(super) fn queue_is_right(
    restore: &Restore<'_>,
    serves: &HashMap<usize, u32>,
    wanted: &State,
    live: usize,
) -> Result<bool, Error> {
    Ok(is_queue(unix::queue(restore.live, live)?, serves, wanted))
}

fn is_queue(mut now: Queue, serves: &HashMap<usize, u32>, wanted: &State) -> bool {
    for message in &mut now.messages {
        for descriptor in &mut message.descriptors {
            *descriptor = serves.get(&(*descriptor as usize)).copied().unwrap_or(u32::MAX);
        }
    }
    let is_seen = !now.is_hidden && now.has_error == wanted.is_reset;
    is_seen && now.messages == wanted.queue
}
