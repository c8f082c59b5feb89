//! Connections of unix sockets that nobody has accepted yet, with what was sent into them.
//!
//! Only accepting such a connection shows what is in it. So they are accepted by our side, while everything stands
//! still; and as they cannot be put back, others are made in their place ([`settle`]). That goes unseen where their
//! clients are gone. A client that is there would get another socket, with another inode number; such connections are
//! left alone, and made anew only to be found reset.

use std::os::fd::{AsFd, BorrowedFd};

use deltabox_sys::socket::{int_option, output_queue_bytes, set_int_option};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SocketFlags, accept_with};

use super::error::{Error, making};
use super::live::Live;
use super::unix::{self, Now, Waiter};
use super::unix_make;
use super::unix_name::Way;
use super::unix_queue::{self, Queued};
use crate::stop::Process;

/// Takes what waits at listeners, left behind by clients that are gone, into the tables of what is live.
pub(super) fn lift(live: &mut Live, now: &Now) -> Result<(), Error> {
    for position in 0..live.descriptions.len() {
        let waiting = now.of(live, position).waiting;
        // The kernel knows no inode number of what nobody holds.
        if live.descriptions[position].is_socket()
            && !waiting.is_empty()
            && waiting.iter().all(|&ino| ino == 0)
        {
            let found = accept_all(live, position, waiting.len())?;
            live.backlogs.insert(position, found);
        }
    }
    Ok(())
}

/// How much memory what a client has sent takes. Nothing is taken out before it is accepted: it can only grow.
pub(super) fn sent(live: &Live, client: usize) -> Result<u32, Error> {
    output_queue_bytes(live.duplicate(client)?).map_err(making("a unix socket"))
}

fn accept_all(live: &mut Live, position: usize, count: usize) -> Result<Vec<Waiter>, Error> {
    let failed = || making("connections not accepted yet");
    let listener = live.duplicate(position)?;
    let mut found = Vec::with_capacity(count);
    while found.len() < count && has_waiting(listener.as_fd())? {
        let accepted = accept_with(&listener, SocketFlags::CLOEXEC);
        let accepted = accepted.map_err(std::io::Error::from).map_err(failed())?;
        let by = unix::credentials(live, accepted.as_fd())?;
        set_int_option(&accepted, libc::SOL_SOCKET, libc::SO_PASSCRED, 1).map_err(failed())?;
        let messages = unix_queue::drain(accepted.as_fd()).map_err(failed())?;
        let messages = messages.into_iter();
        let sent: Result<Vec<Queued>, Error> =
            messages.map(|message| live.queued(message, position)).collect();
        found.push(Waiter {
            client: None,
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

/// Makes connections in the place of those that were accepted.
pub(super) fn settle(live: &Live, processes: &mut [Process]) -> Result<(), Error> {
    let failed = || making("a connection not accepted yet");
    for (&position, waiting) in &live.backlogs {
        let listener = live.pull(position)?;
        let kind = int_option(listener, libc::SOL_SOCKET, libc::SO_TYPE).map_err(failed())?;
        let way = Way::to(listener).map_err(failed())?;
        for waiter in waiting {
            let socket = unix_make::new_socket(live, kind)?;
            let by = waiter.by.and_then(|by| by.process);
            let process = processes.iter_mut().find(|p| Some(p.inside()) == by);
            unix_make::connect_by(process, &socket, &way)?;
            for message in &waiter.sent {
                let descriptors = message.descriptors.iter().map(|&d| live.pull(d as usize));
                let descriptors = descriptors.collect::<Result<Vec<_>, Error>>()?;
                let with = unix_make::attachments(live, message, &descriptors);
                unix_queue::put(socket.as_fd(), &message.bytes, with).map_err(failed())?;
            }
        }
    }
    Ok(())
}
