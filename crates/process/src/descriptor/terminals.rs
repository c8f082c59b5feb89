//! Controlling terminals of processes that are made again.
//!
//! A leader takes a terminal for its session, but only for itself: others have inherited it when they were forked. So a
//! new leader is given its terminal before it makes anybody, and the terminal is made first if need be.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::error::{Error, making};
use super::external::Externals;
use super::place::open_in_root;
use super::tables::{Kind, Tables};
use super::{borrow, pty, session};
use crate::inject::Arg;
use crate::stop::Process;

/// Terminals that are there before the descriptors that lead to them. They have to live until those are restored: a
/// terminal that nobody has open is nobody's controlling terminal.
#[derive(Debug, Default)]
pub struct Terminals {
    masters: HashMap<u32, OwnedFd>,
    slaves: HashMap<u32, OwnedFd>,
}

impl Terminals {
    /// None yet.
    #[must_use]
    pub fn new() -> Terminals {
        Terminals::default()
    }

    /// The master of a terminal that has been made already.
    pub(super) fn master(&self, number: u32) -> Option<BorrowedFd<'_>> {
        self.masters.get(&number).map(AsFd::as_fd)
    }

    /// Makes the terminal `number` the controlling one of the session that `leader` leads. `Ok(false)` if there is no
    /// such terminal any more: its caller has hung up.
    pub(crate) fn give(
        &mut self,
        leader: &mut Process,
        number: u32,
        from: &Source<'_>,
    ) -> Result<bool, Error> {
        let Some(slave) = self.slave(number, from)? else {
            return Ok(false);
        };
        borrow::with_object(leader, slave, None, session::take)?;
        Ok(true)
    }

    /// Has a process do without the terminal `number` that it inherited.
    pub(crate) fn take_away(
        &mut self,
        process: &mut Process,
        number: u32,
        from: &Source<'_>,
    ) -> Result<(), Error> {
        match self.slave(number, from)? {
            Some(slave) => borrow::with_object(process, slave, None, leave),
            None => Ok(()),
        }
    }

    fn slave(&mut self, number: u32, from: &Source<'_>) -> Result<Option<BorrowedFd<'_>>, Error> {
        if !self.slaves.contains_key(&number) {
            let what = || making(format!("terminal {number}"));
            let flags = (libc::O_RDWR | libc::O_NOCTTY) as u32;
            let slave = if from.has_path(number) {
                open_in_root(from.root, &pty::path_of(number), flags).map_err(what())?
            } else if from.has_master(number) {
                let master = pty::make_master(from.root, number)?;
                let slave = pty::open_peer(master.as_fd(), flags).map_err(making("a terminal"))?;
                self.masters.insert(number, master);
                slave
            } else {
                return Ok(None);
            };
            self.slaves.insert(number, slave);
        }
        Ok(self.slaves.get(&number).map(AsFd::as_fd))
    }
}

/// Whether a process whose controlling terminal was `number` can have it again: the terminal is part of the state, or
/// its caller has not hung up.
pub(crate) fn can_be_had(number: u32, from: &Source<'_>) -> bool {
    from.has_master(number) || from.has_path(number)
}

/// Where terminals come from.
pub(crate) struct Source<'a> {
    /// The wanted ones.
    pub tables: &'a Tables,
    /// The sandbox's root.
    pub root: BorrowedFd<'a>,
    /// Those of callers.
    pub externals: &'a Externals,
}

impl Source<'_> {
    fn has_master(&self, number: u32) -> bool {
        self.tables.descriptions.iter().any(|description| {
            matches!(description.kind, Kind::PtyMaster(end)
                if self.tables.ptys[end.pty as usize].identity.number == number)
        })
    }

    /// Whether the terminal is there. The number of a caller's that is gone may be another's by now.
    fn has_path(&self, number: u32) -> bool {
        let mut of_it = self
            .tables
            .ptys
            .iter()
            .filter(|pty| pty.identity.number == number);
        let replaced = of_it.any(|pty| pty.external.is_some_and(|id| self.externals.end(id).is_some()));
        !replaced && open_in_root(self.root, &pty::path_of(number), libc::O_PATH as u32).is_ok()
    }
}

/// Gives the controlling terminal up, which is one of these.
fn leave(process: &mut Process, terminal: i32) -> Result<(), Error> {
    let args = [Arg::from(terminal), libc::TIOCNOTTY.into()];
    let left = process.call(libc::SYS_ioctl, &args)?;
    left.map(drop).map_err(|source| Error::Act {
        process: process.inside(),
        what: "give its controlling terminal up",
        source: source.into(),
    })
}
