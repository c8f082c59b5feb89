//! Sockets of all families: told apart here, carried by one module per family.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd};

use deltabox_sys::socket::int_option;
use rustix::io::Errno;

use super::capture::Capture;
use super::class::{Class, of as class_of};
use super::error::{Error, bad_state, making};
use super::live::Live;
use super::options;
use super::restore::Restore;
use super::tables::Kind;
use super::{netlink, tcp, tcp_make, udp, unix, unix_fit, unix_make};
use crate::inject::Batch;
use crate::stop::Process;

/// What a socket is, as far as it can be carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sort {
    Unix,
    Tcp,
    Udp,
    Netlink,
    Other,
}

pub(super) fn sort(socket: BorrowedFd<'_>) -> Result<Sort, Error> {
    let ask = |name| int_option(socket, libc::SOL_SOCKET, name).map_err(making("a socket"));
    let (domain, kind) = (ask(libc::SO_DOMAIN)?, ask(libc::SO_TYPE)?);
    let protocol = ask(libc::SO_PROTOCOL)?;
    Ok(match (domain, kind, protocol) {
        (libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_DGRAM | libc::SOCK_SEQPACKET, _) => Sort::Unix,
        (libc::AF_INET | libc::AF_INET6, libc::SOCK_STREAM, libc::IPPROTO_TCP) => Sort::Tcp,
        (libc::AF_INET | libc::AF_INET6, libc::SOCK_DGRAM, libc::IPPROTO_UDP) => Sort::Udp,
        (libc::AF_NETLINK, _, _) => Sort::Netlink,
        _ => Sort::Other,
    })
}

type Reason = Option<(&'static str, &'static str)>;

pub(super) fn survey(live: &Live, position: usize) -> Result<Reason, Error> {
    let socket = live.pull(position)?;
    if options::has_filter(socket) {
        return Ok(Some((
            "it has a packet filter, which cannot be read out",
            "detach the filter first",
        )));
    }
    match sort(socket)? {
        Sort::Unix => Ok(None),
        Sort::Tcp => tcp::survey(socket),
        Sort::Udp => udp::survey(socket),
        Sort::Netlink => netlink::survey(socket),
        Sort::Other => Ok(Some((
            "only unix, TCP, UDP and netlink sockets can be carried",
            "close it before the checkpoint",
        ))),
    }
}

pub(super) fn capture(capture: &mut Capture<'_>, position: usize) -> Result<Kind, Error> {
    let live = capture.live;
    let socket = live.pull(position)?;
    Ok(match sort(socket)? {
        Sort::Unix => {
            let now = capture.unix_now()?;
            Kind::Unix(unix::capture(live, &now, position)?)
        }
        Sort::Tcp => Kind::Tcp(tcp::capture(live, position)?),
        Sort::Udp => Kind::Udp(udp::capture(live, socket, &capture.groups()?)?),
        Sort::Netlink => Kind::Netlink(netlink::capture(socket)?),
        Sort::Other => return Err(bad_state("a socket", "it is of a family that cannot be carried")),
    })
}

/// The same socket; what it is connected to is looked at when all are known.
pub(super) fn same(kind: &Kind, live: &Live, position: usize) -> bool {
    let Ok(socket) = live.duplicate(position) else {
        return false;
    };
    let Ok(found) = sort(socket.as_fd()) else {
        return false;
    };
    matches!(
        (kind, found),
        (Kind::Unix(_), Sort::Unix)
            | (Kind::Tcp(_), Sort::Tcp)
            | (Kind::Udp(_), Sort::Udp)
            | (Kind::Netlink(_), Sort::Netlink)
    )
}

/// Brings every socket to its wanted state, making those anew that cannot be changed into it.
pub(super) fn restore_all(restore: &mut Restore<'_>, processes: &mut [Process]) -> Result<(), Error> {
    let any = restore.live.descriptions.iter().any(|d| d.is_socket())
        || restore.wanted.descriptions.iter().any(|d| is_socket(&d.kind));
    if !any {
        return Ok(());
    }
    unix_fit::release_unfit(restore)?;
    tcp_make::release_unfit(restore)?;
    udp::release_unfit(restore)?;
    netlink::release_unfit(restore)?;
    evict(restore, processes)?;
    unix_make::restore_all(restore, processes)?;
    tcp_make::restore_all(restore)?;
    udp::restore_all(restore)?;
    netlink::restore_all(restore)
}

fn is_socket(kind: &Kind) -> bool {
    matches!(
        kind,
        Kind::Unix(_) | Kind::Tcp(_) | Kind::Udp(_) | Kind::Netlink(_)
    )
}

/// Closes sockets that nobody wants any more, so that their names and ports are free again.
fn evict(restore: &mut Restore<'_>, processes: &mut [Process]) -> Result<(), Error> {
    let kept: BTreeSet<usize> = restore.kept.iter().flatten().copied().collect();
    for (position, description) in restore.live.descriptions.iter().enumerate() {
        let wanted = kept.contains(&position) || description.queued;
        let external = restore.environment.externals.find(description.object).is_some();
        if class_of(restore.live, description) == Class::Socket && !wanted && !external {
            tcp_make::end_silently(restore.live.duplicate(position)?.as_fd())?;
            restore.evicted.insert(position);
        }
    }
    for live in &restore.live.processes {
        let mut batch = Batch::new();
        let closed = live
            .slots
            .iter()
            .filter(|slot| restore.evicted.contains(&slot.description));
        let calls: Vec<_> = closed
            .map(|slot| batch.call(libc::SYS_close, &[slot.fd.into()]))
            .collect();
        if calls.is_empty() {
            continue;
        }
        let process = processes.iter_mut().find(|p| p.inside() == live.number);
        process
            .ok_or(Error::Missing { process: live.number })?
            .run(&mut batch)?;
        for call in calls {
            if let Err(Errno::BADF) = batch.result(call) {
                let source = Errno::BADF.into();
                return Err(Error::Act {
                    process: live.number,
                    what: "close a socket",
                    source,
                });
            }
        }
    }
    Ok(())
}
