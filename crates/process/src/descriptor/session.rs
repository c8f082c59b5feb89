//! Which terminal controls which session, and which of its groups is in the foreground.

use super::borrow;
use super::error::Error;
use super::live::Live;
use super::pty::Identity;
use super::restore::Restore;
use super::tables::Kind;
use crate::ids::InsidePid;
use crate::inject::{Arg, Batch};
use crate::stop::Process;

/// What `/proc/pid/stat` says of one process.
#[derive(Clone, Copy, Debug)]
pub(super) struct OfProcess {
    pub process: InsidePid,
    pub session: Option<InsidePid>,
    pub terminal: Option<Identity>,
    pub foreground: Option<InsidePid>,
}

/// Fields of `/proc/pid/stat` after the name: session, terminal, foreground group (proc_pid_stat(5), from 6).
fn parse(stat: &str) -> Option<(i32, u32, i32)> {
    let rest = stat.rsplit_once(')')?.1;
    let mut words = rest.split_whitespace().skip(3);
    Some((
        words.next()?.parse().ok()?,
        words.next()?.parse::<i32>().ok()? as u32,
        words.next()?.parse().ok()?,
    ))
}

/// The number of a pseudo terminal from `tty_nr`.
pub(crate) fn terminal(tty_nr: u32) -> Option<Identity> {
    let (major, minor) = (
        (tty_nr >> 8) & 0xfff,
        (tty_nr & 0xff) | ((tty_nr >> 12) & 0xfff00),
    );
    (136..=143).contains(&major).then(|| Identity {
        number: (major - 136) * 256 + minor,
    })
}

pub(super) fn all(live: &Live) -> Result<Vec<OfProcess>, Error> {
    let mut found = Vec::with_capacity(live.processes.len());
    for process in &live.processes {
        let failed = |source| Error::Read {
            process: process.number,
            what: "its session",
            source,
        };
        let path = format!("/proc/{}/stat", process.pid.as_raw_nonzero());
        let text = std::fs::read_to_string(path).map_err(failed)?;
        let (session, tty, foreground) =
            parse(&text).ok_or_else(|| failed(std::io::Error::other("it is not as expected")))?;
        let terminal = terminal(tty);
        let group = if terminal.is_some() {
            live.inside(foreground)
        } else {
            None
        };
        found.push(OfProcess {
            process: process.number,
            session: live.inside(session),
            terminal,
            foreground: group,
        });
    }
    Ok(found)
}

/// Makes a group the foreground group of a terminal, from within the terminal's session; the leader takes the
/// terminal as its controlling one first where it has lost it.
pub(super) fn set_foreground(
    restore: &Restore<'_>,
    processes: &mut [Process],
    pty: usize,
    session: InsidePid,
    foreground: InsidePid,
    now: &[OfProcess],
) -> Result<(), Error> {
    let state = &restore.wanted.ptys[pty];
    let slave = restore
        .wanted
        .descriptions
        .iter()
        .position(|d| matches!(d.kind, Kind::PtySlave(end) if end.pty as usize == pty));
    // A terminal nobody has open any more is out of reach, for the programs as well.
    let Some(slave) = slave else { return Ok(()) };
    let member = now.iter().find(|p| p.process == session).or_else(|| {
        now.iter()
            .find(|p| p.session == Some(session) && p.terminal == Some(state.identity))
    });
    let Some(member) = member else { return Ok(()) };
    let leads = member.process == session;
    let process = processes
        .iter_mut()
        .find(|p| p.inside() == member.process)
        .ok_or(Error::Missing {
            process: member.process,
        })?;
    let object = restore.object(slave)?;
    borrow::with_object(process, object, None, |process, terminal| {
        if leads {
            take(process, terminal)?;
        }
        set(process, terminal, foreground)
    })
}

/// Makes a terminal the controlling one of the session that the process leads.
pub(super) fn take(process: &mut Process, terminal: i32) -> Result<(), Error> {
    // Refused when the session has another one, which then stays.
    let args = [Arg::from(terminal), Arg::from(libc::TIOCSCTTY), Arg::from(0)];
    process.call(libc::SYS_ioctl, &args)?.ok();
    Ok(())
}

fn set(process: &mut Process, terminal: i32, foreground: InsidePid) -> Result<(), Error> {
    let mut batch = Batch::new();
    let group = batch.input(&foreground.0.to_ne_bytes());
    // Injected calls run with all signals blocked, so a background process is not stopped for it (SIGTTOU).
    let call = batch.call(
        libc::SYS_ioctl,
        &[Arg::from(terminal), Arg::from(libc::TIOCSPGRP), group.into()],
    );
    process.run(&mut batch)?;
    match batch.result(call) {
        Ok(_) => Ok(()),
        // The group has no process any more.
        Err(rustix::io::Errno::SRCH | rustix::io::Errno::PERM) => Ok(()),
        Err(source) => Err(Error::Act {
            process: process.inside(),
            what: "put its foreground group back",
            source: source.into(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_parsed() {
        let stat = "12 (a (b) c) S 1 12 10 34817 15 4194304 0";
        assert_eq!(parse(stat), Some((10, 34817, 15)));
        assert_eq!(terminal(34817), Some(Identity { number: 1 }));
        assert_eq!(terminal(0), None);
    }
}
