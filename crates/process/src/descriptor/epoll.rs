//! epoll: a set of (number, file) pairs with events and data.
//!
//! The kernel keys a target by the number it was added under *and* the file behind that number at that time, and
//! keeps it while the file lives, even when the number is closed or reused. So each target is kept with its number
//! and its description, and added again from inside a process, under that number.

use std::collections::HashMap;
use std::os::fd::OwnedFd;

use deltabox_sys::kcmp::{self, EpollTarget};
use rustix::event::epoll::{CreateFlags, create};
use serde::{Deserialize, Serialize};

use super::class::{self, Class};
use super::error::{Error, bad_state, making};
use super::live::Live;
use super::restore::Restore;
use super::tables::Kind;
use super::{borrow, edge};
use crate::inject::{Arg, Batch};
use crate::stop::Process;

/// An epoll instance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    pub targets: Vec<Target>,
}

/// One target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Target {
    /// The number it was added under.
    pub fd: i32,
    /// Position in [`Tables::descriptions`](super::tables::Tables::descriptions).
    pub description: u32,
    pub events: u32,
    pub data: u64,
    /// Of an edge-triggered one: its edge has not been reported yet.
    pub pending: bool,
}

/// One `tfd:` line of fdinfo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Line {
    fd: i32,
    events: u32,
    data: u64,
    ino: u64,
}

fn parse(line: &str) -> Option<Line> {
    let mut words = line.strip_prefix("tfd:")?.split_whitespace();
    let fd = words.next()?.parse().ok()?;
    words.next().filter(|w| *w == "events:")?;
    let events = u32::from_str_radix(words.next()?, 16).ok()?;
    words.next().filter(|w| *w == "data:")?;
    let data = u64::from_str_radix(words.next()?, 16).ok()?;
    let ino = words.find_map(|w| w.strip_prefix("ino:"))?;
    Some(Line {
        fd,
        events,
        data,
        ino: u64::from_str_radix(ino, 16).ok()?,
    })
}

/// All live instances, by their positions.
pub(super) fn capture(live: &Live) -> Result<HashMap<usize, State>, Error> {
    let mut found = HashMap::new();
    for (position, description) in live.descriptions.iter().enumerate() {
        if class::of(live, description) == Class::Epoll {
            found.insert(position, targets(live, position)?);
        }
    }
    edge::look(live, &mut found)?;
    Ok(found)
}

/// One live instance, but for which edges have been reported.
fn targets(live: &Live, position: usize) -> Result<State, Error> {
    let lines: Vec<Line> = live.descriptions[position]
        .info
        .lines()
        .filter_map(parse)
        .collect();
    let mut targets = Vec::with_capacity(lines.len());
    let mut same_number = 0;
    for (index, line) in lines.iter().enumerate() {
        // Targets under one number come one after the other, and are told apart by their order.
        same_number = if index > 0 && lines[index - 1].fd == line.fd {
            same_number + 1
        } else {
            0
        };
        let description = find(live, position, line, same_number)?;
        let (fd, events, data) = (line.fd, line.events, line.data);
        targets.push(Target {
            fd,
            description: description as u32,
            events,
            data,
            pending: false,
        });
    }
    targets.sort_unstable();
    Ok(State { targets })
}

/// The description a target leads to.
fn find(live: &Live, position: usize, line: &Line, offset: u32) -> Result<usize, Error> {
    let owner = live.descriptions[position].holder.0;
    let (owner_pid, epoll) = live.task_of(position);
    let target = EpollTarget {
        epoll,
        target: line.fd,
        offset,
    };
    let leads_to = |candidate: usize| -> Result<bool, Error> {
        let (task, fd) = live.task_of(candidate);
        let process = live.processes[owner].number;
        kcmp::epoll_target(task, fd, owner_pid, target)
            .map(|order| order == std::cmp::Ordering::Equal)
            .map_err(|source| Error::Read {
                process,
                what: "the targets of epoll",
                source,
            })
    };
    // Most often the number still leads there.
    if let Some(likely) = live.at(live.processes[owner].number, line.fd)
        && live.descriptions[likely].object.ino == line.ino
        && leads_to(likely)?
    {
        return Ok(likely);
    }
    for candidate in 0..live.descriptions.len() {
        if live.descriptions[candidate].object.ino == line.ino && leads_to(candidate)? {
            return Ok(candidate);
        }
    }
    let (process, fd) = live.name(position);
    Err(bad_state(
        format!("epoll descriptor {fd} of process {process}"),
        "it watches a file that is only held by something queued in a socket",
    ))
}

/// Any instance can be given any targets.
pub(super) fn same() -> bool {
    true
}

pub(super) fn make() -> Result<OwnedFd, Error> {
    create(CreateFlags::CLOEXEC).map_err(making("an epoll instance"))
}

/// What has to happen to one instance.
struct Change {
    remove: Vec<Target>,
    add: Vec<Target>,
}

/// What the live instances that stay have, by their positions; to be asked while all numbers are as they were.
pub(super) fn look(restore: &Restore<'_>) -> Result<HashMap<usize, State>, Error> {
    let mut found = HashMap::new();
    for (wanted, description) in restore.wanted.descriptions.iter().enumerate() {
        if let (Kind::Epoll(_), Some(live)) = (&description.kind, restore.kept[wanted]) {
            found.insert(live, targets(restore.live, live)?);
        }
    }
    Ok(found)
}

/// Makes every instance have its targets, now that all numbers are right. `before` is what [`look`] found.
pub(super) fn restore_all(
    restore: &Restore<'_>,
    before: &HashMap<usize, State>,
    processes: &mut [Process],
) -> Result<(), Error> {
    for (position, description) in restore.wanted.descriptions.iter().enumerate() {
        let Kind::Epoll(state) = &description.kind else {
            continue;
        };
        let change = difference(restore, before, position, state);
        if change.remove.is_empty() && change.add.is_empty() {
            continue;
        }
        apply(restore, processes, position, &change)?;
    }
    Ok(())
}

/// Targets whose file is still the same one, with the same number, events and data, are left alone, and with them
/// the events that are ready.
fn difference(
    restore: &Restore<'_>,
    before: &HashMap<usize, State>,
    position: usize,
    state: &State,
) -> Change {
    let now = match restore.kept[position].and_then(|live| before.get(&live)) {
        // The targets of a live instance name live descriptions; translate them to the wanted ones they serve as.
        Some(live) => live
            .targets
            .iter()
            .copied()
            .map(|target| {
                let serves = restore
                    .kept
                    .iter()
                    .position(|k| *k == Some(target.description as usize));
                (target, serves)
            })
            .collect(),
        None => Vec::new(),
    };
    let is = |a: &Target, serves: Option<usize>, b: &Target| {
        serves == Some(b.description as usize) && (a.fd, a.events, a.data) == (b.fd, b.events, b.data)
    };
    let missing = |b: &&Target| !now.iter().any(|(a, serves)| is(a, *serves, b));
    let extra = |(a, serves): &(Target, Option<usize>)| {
        // A target whose file is closed everywhere goes by itself.
        let lives = serves.is_some();
        (lives && !state.targets.iter().any(|b| is(a, *serves, b))).then_some(Target {
            description: serves.unwrap_or(0) as u32,
            ..*a
        })
    };
    Change {
        remove: now.iter().filter_map(extra).collect(),
        add: state.targets.iter().filter(missing).copied().collect(),
    }
}

const ADD: i32 = 1;
const DELETE: i32 = 2;

/// Runs `epoll_ctl` in a process that has the instance. A target's number leads to its file in most cases; where
/// it does not (closed or reused since), the file is put there for the moment.
fn apply(
    restore: &Restore<'_>,
    processes: &mut [Process],
    position: usize,
    change: &Change,
) -> Result<(), Error> {
    let holder = restore.wanted.processes.iter().find_map(|table| {
        let slot = table.slots.iter().find(|s| s.description as usize == position)?;
        Some((table, slot.fd))
    });
    let Some((table, epoll)) = holder else {
        return Err(bad_state("an epoll instance", "no process holds it"));
    };
    let process = processes
        .iter_mut()
        .find(|p| p.inside() == table.process)
        .ok_or(Error::Missing {
            process: table.process,
        })?;
    let steps = change
        .remove
        .iter()
        .map(|t| (DELETE, t))
        .chain(change.add.iter().map(|t| (ADD, t)));
    for (operation, target) in steps {
        let there = table.slots.iter().find(|s| s.fd == target.fd);
        let direct = there.is_some_and(|s| s.description == target.description);
        if direct {
            control(process, epoll, operation, target)?;
        } else {
            // What the number leads to now comes back afterwards.
            let before = match there {
                Some(slot) => Some((restore.object(slot.description as usize)?, slot.close_on_exec)),
                None => None,
            };
            let object = restore.object(target.description as usize)?;
            borrow::with_object(process, object, Some((target.fd, before)), |process, _| {
                control(process, epoll, operation, target)
            })?;
        }
    }
    Ok(())
}

fn control(process: &mut Process, epoll: i32, operation: i32, target: &Target) -> Result<(), Error> {
    let mut batch = Batch::new();
    // struct epoll_event is packed on x86-64: 4 bytes of events, 8 of data.
    let event = [&target.events.to_ne_bytes()[..], &target.data.to_ne_bytes()[..]].concat();
    let event = batch.input(&event);
    let call = batch.call(
        libc::SYS_epoll_ctl,
        &[
            Arg::from(epoll),
            Arg::from(operation),
            Arg::from(target.fd),
            event.into(),
        ],
    );
    process.run(&mut batch)?;
    batch.result(call).map(drop).map_err(|source| Error::Act {
        process: process.inside(),
        what: "change the targets of an epoll instance",
        source: source.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_parsed() {
        let line = "tfd:        3 events:       19 data:     7f9f00000003  pos:0 ino:40e sdev:10";
        assert_eq!(
            parse(line).unwrap(),
            Line {
                fd: 3,
                events: 0x19,
                data: 0x7f9f_0000_0003,
                ino: 0x40e
            }
        );
    }
}
