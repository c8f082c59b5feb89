//! Edge-triggered targets of epoll: which of them the program has been told of.
//!
//! An edge is reported once, and whether it has been is known to nobody but the kernel. So an instance that has
//! anything to report is emptied while everybody stands still, and what it reported is put in again: at a checkpoint
//! all of it, at a rollback what was pending then. An instance that has nothing to report is left alone.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use deltabox_sys::epoll::{self as kernel, take_events};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::epoll::{State, Target};
use super::error::{Error, making};
use super::live::Live;
use super::restore::Restore;
use super::tables::Kind;

const EDGE: u32 = libc::EPOLLET as u32;
const ONCE: u32 = libc::EPOLLONESHOT as u32;
/// Bits that are no events.
const HOW: u32 = EDGE | ONCE | (libc::EPOLLWAKEUP | libc::EPOLLEXCLUSIVE) as u32;

/// A target that is reported once for each event, and goes on: one that stops at the first has something to report
/// if and only if it is ready.
fn is_edge(target: &Target) -> bool {
    target.events & (EDGE | ONCE) == EDGE
}

/// A target that waits for its only event.
fn is_armed(target: &Target) -> bool {
    target.events & ONCE != 0 && target.events & !HOW != 0
}

fn has_events(instance: BorrowedFd<'_>) -> Result<bool, Error> {
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let mut polled = [PollFd::from_borrowed_fd(instance, PollFlags::IN)];
    poll(&mut polled, Some(&now)).map_err(making("an epoll instance"))?;
    Ok(!polled[0].revents().is_empty())
}

fn to_kernel<'a>(target: &Target, file: BorrowedFd<'a>) -> kernel::Target<'a> {
    kernel::Target {
        file,
        number: target.fd,
        events: target.events,
        data: target.data,
    }
}

/// Finds out which edges are pending. What is put in again is an event for whoever watches the instance itself, so
/// those are looked at first.
pub(super) fn look(live: &Live, found: &mut HashMap<usize, State>) -> Result<(), Error> {
    let watching = |state: &State| {
        let mut targets = state.targets.iter();
        targets.any(|target| found.contains_key(&(target.description as usize)))
    };
    let mut order: Vec<(bool, usize)> = found
        .iter()
        .filter(|(_, state)| state.targets.iter().any(is_edge))
        .map(|(&position, state)| (!watching(state), position))
        .collect();
    order.sort_unstable();
    for (_, position) in order {
        let instance = live.pull(position)?;
        let Some(state) = found.get_mut(&position) else {
            continue;
        };
        if !has_events(instance)? {
            continue;
        }
        let targets = state
            .targets
            .iter()
            .map(|target| Ok(to_kernel(target, live.pull(target.description as usize)?)))
            .collect::<Result<Vec<_>, Error>>()?;
        let targets_of = &mut state.targets;
        take_events(instance, &targets, |reported| {
            for &place in reported {
                targets_of[place].pending = is_edge(&targets_of[place]);
            }
            let again = |&place: &usize| targets_of[place].pending || is_armed(&targets_of[place]);
            reported.iter().copied().filter(again).collect()
        })
        .map_err(making("an epoll instance"))?;
    }
    Ok(())
}

/// An instance with edges to be put right.
pub(super) struct Edges {
    instance: OwnedFd,
    targets: Vec<(Target, OwnedFd)>,
    /// It watches another one.
    watching: bool,
}

/// What has to be done once nothing changes any more that could be an event.
pub(super) fn prepare(restore: &Restore<'_>) -> Result<Vec<Edges>, Error> {
    let mut all = Vec::new();
    for (position, description) in restore.wanted.descriptions.iter().enumerate() {
        let Kind::Epoll(state) = &description.kind else {
            continue;
        };
        if !state.targets.iter().any(is_edge) {
            continue;
        }
        let own = |wanted: usize| -> Result<OwnedFd, Error> {
            let object = restore.object(wanted)?;
            object.try_clone_to_owned().map_err(making("an epoll instance"))
        };
        let is_epoll = |wanted: usize| matches!(restore.wanted.descriptions[wanted].kind, Kind::Epoll(_));
        let targets = state.targets.iter();
        all.push(Edges {
            instance: own(position)?,
            watching: targets
                .clone()
                .any(|target| is_epoll(target.description as usize)),
            targets: targets
                .map(|target| Ok((*target, own(target.description as usize)?)))
                .collect::<Result<_, Error>>()?,
        });
    }
    all.sort_by_key(|edges| edges.watching);
    Ok(all)
}

impl Edges {
    /// Has exactly those edges reported that were pending.
    pub(super) fn restore(&self) -> Result<(), Error> {
        let pending = |(target, _): &(Target, OwnedFd)| target.pending;
        let instance = self.instance.as_fd();
        if !self.targets.iter().any(pending) && !has_events(instance)? {
            return Ok(());
        }
        let targets: Vec<_> = self
            .targets
            .iter()
            .map(|(target, file)| to_kernel(target, file.as_fd()))
            .collect();
        take_events(instance, &targets, |reported| {
            let again = |&place: &usize| {
                let target = &self.targets[place].0;
                target.pending || (is_armed(target) && reported.contains(&place))
            };
            (0..self.targets.len()).filter(again).collect()
        })
        .map_err(making("an epoll instance"))
    }
}
