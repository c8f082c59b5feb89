//! Connections of unix sockets that nobody has accepted yet, with what was sent into them.
//!
//! Only accepting such a connection shows what is in it. So they are accepted by our side, while everything stands
//! still, and nobody can put them back: at the end of the checkpoint the clients get sockets that are connected anew,
//! by the means of a restore ([`settle`]). Where the clients have sent nothing since the checkpoint before, that one's
//! findings are used again, and nothing is touched.

use std::os::fd::{AsFd, BorrowedFd};

use deltabox_sys::socket::{output_queue_bytes, set_int_option};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SocketFlags, accept_with};

use super::error::{Error, making};
use super::live::{Live, Member};
use super::restore::{Environment, restore};
use super::tables::{Kind, ObjectKey, Tables};
use super::unix::{self, Now, Role, Waiter};
use super::unix_queue::{self, Queued};
use crate::stop::Process;

/// Takes what waits at listeners into the tables of what is live, where it can be known in no other way.
pub(super) fn lift(live: &mut Live, now: &Now, previous: Option<&Tables>) -> Result<(), Error> {
    let mut crowded = Vec::new();
    for position in 0..live.descriptions.len() {
        let waiting = now.of(live, position).waiting;
        if !live.descriptions[position].is_socket() || !is_used(live, now, &waiting)? {
            continue;
        }
        if let Some(known) = known(live, now, position, &waiting, previous)? {
            live.backlogs.insert(position, known);
        } else if waiting.iter().any(|&ino| ino != 0 && now.position(ino).is_none()) {
            return Err(live.refusal(
                position,
                "connections wait in it, with data, together with others from outside of the sandbox",
                "have the program accept them, and try again",
            ));
        } else {
            crowded.push((position, waiting));
        }
    }
    for (position, waiting) in crowded {
        let found = accept_all(live, now, position, &waiting)?;
        live.backlogs.insert(position, found);
        live.is_lifted = true;
    }
    Ok(())
}

/// Is there anything in these connections, or may there be?
fn is_used(live: &Live, now: &Now, waiting: &[u32]) -> Result<bool, Error> {
    for &ino in waiting {
        let used = match now.position(ino) {
            Some(client) => sent(live, client)? > 0,
            None => ino == 0,
        };
        if used {
            return Ok(true);
        }
    }
    Ok(false)
}

/// How much memory what a client has sent takes. Nothing is taken out before it is accepted: it can only grow.
pub(super) fn sent(live: &Live, client: usize) -> Result<u32, Error> {
    output_queue_bytes(live.duplicate(client)?).map_err(making("a unix socket"))
}

/// What an earlier checkpoint found, if nothing has happened since.
fn known(
    live: &Live,
    now: &Now,
    position: usize,
    waiting: &[u32],
    previous: Option<&Tables>,
) -> Result<Option<Vec<Waiter>>, Error> {
    let Some((previous, before)) = previous.and_then(|p| Some((p, before(p, live, position)?))) else {
        return Ok(None);
    };
    if before.len() != waiting.len() {
        return Ok(None);
    }
    let mut found = Vec::with_capacity(before.len());
    for (waiter, &ino) in before.iter().zip(waiting) {
        let (Some(was), Some(client)) = (waiter.client, now.position(ino)) else {
            return Ok(None);
        };
        let was = &previous.descriptions[was as usize];
        let has_sent = match &was.kind {
            Kind::Unix(state) => match state.role {
                Role::Waiting { sent } => Some(sent),
                _ => None,
            },
            _ => None,
        };
        // Positions of descriptors are not the same ones any more.
        let is_plain = waiter.sent.iter().all(|message| message.descriptors.is_empty());
        let is_same = was.object == live.descriptions[client].object && has_sent == Some(sent(live, client)?);
        if !is_plain || !is_same {
            return Ok(None);
        }
        found.push(Waiter {
            client: Some(client as u32),
            ..waiter.clone()
        });
    }
    Ok(Some(found))
}

/// Who waited at a listener at an earlier checkpoint.
fn before<'t>(previous: &'t Tables, live: &Live, position: usize) -> Option<&'t [Waiter]> {
    let object: ObjectKey = live.descriptions[position].object;
    let listener = previous.descriptions.iter().find(|d| d.object == object)?;
    match &listener.kind {
        Kind::Unix(state) => match &state.role {
            Role::Listening { waiting, .. } => Some(waiting),
            _ => None,
        },
        _ => None,
    }
}

fn accept_all(live: &mut Live, now: &Now, position: usize, waiting: &[u32]) -> Result<Vec<Waiter>, Error> {
    let failed = || making("connections not accepted yet");
    let listener = live.duplicate(position)?;
    let mut found = Vec::with_capacity(waiting.len());
    for &ino in waiting {
        if !has_waiting(listener.as_fd())? {
            break;
        }
        let accepted = accept_with(&listener, SocketFlags::CLOEXEC);
        let accepted = accepted.map_err(std::io::Error::from).map_err(failed())?;
        let by = unix::credentials(live, accepted.as_fd())?;
        set_int_option(&accepted, libc::SOL_SOCKET, libc::SO_PASSCRED, 1).map_err(failed())?;
        let messages = unix_queue::drain(accepted.as_fd()).map_err(failed())?;
        let sent: Result<Vec<Queued>, Error> = messages
            .into_iter()
            .map(|message| live.queued(message, position))
            .collect();
        found.push(Waiter {
            client: now.position(ino).map(|p| p as u32),
            by,
            sent: sent?,
        });
    }
    Ok(found)
}

/// Does somebody wait to be accepted?
pub(super) fn has_waiting(listener: BorrowedFd<'_>) -> Result<bool, Error> {
    let mut asked = [PollFd::from_borrowed_fd(listener, PollFlags::IN)];
    let ready = poll(&mut asked, Some(&Timespec::default()));
    ready.map(|n| n > 0).map_err(making("a listening unix socket"))
}

/// Gives clients whose connections were lifted new ones, and notes in the tables which they are.
///
/// # Errors
/// Those of a restore.
pub(super) fn settle(
    processes: &mut [Process],
    tables: &mut Tables,
    environment: &Environment<'_>,
) -> Result<(), Error> {
    restore(processes, tables, environment)?;
    let members: Vec<Member> = processes.iter().map(Member::of).collect();
    let live = Live::read(&members, environment.root, environment.first_id)?;
    let Tables {
        processes,
        descriptions,
        ..
    } = tables;
    for table in processes.iter() {
        for slot in &table.slots {
            let description = &mut descriptions[slot.description as usize];
            if let Kind::Unix(state) = &mut description.kind
                && let Role::Waiting { sent } = &mut state.role
                && let Some(found) = live.at(table.process, slot.fd)
            {
                description.object = live.descriptions[found].object;
                *sent = self::sent(&live, found)?;
            }
        }
    }
    Ok(())
}
