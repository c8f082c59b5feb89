//! Controlling terminals of processes that are made again.
//!
//! A leader takes a terminal for its session, but only for itself: others have inherited it when they were forked. So a
//! new leader is given its terminal before it makes anybody, and the terminal is made first if need be.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::error::{Error, making};
use super::place::open_in_root;
use super::tables::{Kind, Tables};
use super::{borrow, pty, session};
use crate::inject::Batch;
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
        tables: &Tables,
        root: BorrowedFd<'_>,
    ) -> Result<bool, Error> {
        let Some(slave) = self.slave(number, tables, root)? else {
            return Ok(false);
        };
        borrow::with_object(leader, slave, None, session::take)?;
        Ok(true)
    }

    fn slave(
        &mut self,
        number: u32,
        tables: &Tables,
        root: BorrowedFd<'_>,
    ) -> Result<Option<BorrowedFd<'_>>, Error> {
        if !self.slaves.contains_key(&number) {
            let what = || making(format!("terminal {number}"));
            let path = pty::path_of(number);
            let flags = (libc::O_RDWR | libc::O_NOCTTY) as u32;
            let slave = if open_in_root(root, &path, libc::O_PATH as u32).is_ok() {
                open_in_root(root, &path, flags).map_err(what())?
            } else if has_master(tables, number) {
                let master = pty::make_master(root, number)?;
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

fn has_master(tables: &Tables, number: u32) -> bool {
    tables.descriptions.iter().any(|description| {
        matches!(description.kind, Kind::PtyMaster(end)
            if tables.ptys[end.pty as usize].identity.number == number)
    })
}

/// Whether a process whose controlling terminal was `number` can have it again: the terminal is part of the state, or
/// its caller has not hung up.
pub(crate) fn can_be_had(number: u32, tables: &Tables, root: BorrowedFd<'_>) -> bool {
    has_master(tables, number) || open_in_root(root, &pty::path_of(number), libc::O_PATH as u32).is_ok()
}

/// Has a process that inherited a controlling terminal do without.
pub(crate) fn drop_inherited(process: &mut Process) -> Result<(), Error> {
    let pid = process.inside();
    let failed = move |source: rustix::io::Errno| Error::Act {
        process: pid,
        what: "give its controlling terminal up",
        source: source.into(),
    };
    let mut batch = Batch::new();
    let path = batch.input_str(b"/dev/tty");
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    let open = batch.call(
        libc::SYS_openat,
        &[libc::AT_FDCWD.into(), path.into(), flags.into()],
    );
    process.run(&mut batch)?;
    let terminal = batch.result(open).map_err(failed)?;
    let mut batch = Batch::new();
    let give_up = batch.call(libc::SYS_ioctl, &[terminal.into(), libc::TIOCNOTTY.into()]);
    batch.call(libc::SYS_close, &[terminal.into()]);
    process.run(&mut batch)?;
    batch.result(give_up).map_err(failed).map(drop)
}
