//! Pseudo terminals: settings, window, job control, and what was typed or printed and not yet read.
//!
//! A terminal whose master is held by a program of the sandbox is part of the state. One whose master is the
//! caller's is not: of it only what programs set (termios, the foreground group) is put back.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use deltabox_sys::fd::{
    IntRequest, IntSetting, Termios, int_from_ioctl, int_to_ioctl, set_exclusive, set_termios, termios,
};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer};
use rustix::termios::{Winsize, tcgetwinsize, tcsetwinsize};
use serde::{Deserialize, Serialize};

use super::capture::Capture;
use super::error::{Error, bad_state, making};
use super::external::ExternalId;
use super::live::{Live, LiveDescription};
use super::place::{open_in_root, reopen};
use super::restore::Restore;
use super::tables::Kind;
use super::{class, pty_queue, session};
use crate::ids::InsidePid;
use crate::stop::Process;

/// Which terminal: the number that is in `/dev/pts/N`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Identity {
    pub number: u32,
}

/// A pseudo terminal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    pub identity: Identity,
    /// Set when the caller holds the master.
    pub external: Option<ExternalId>,
    /// `None` once it was hung up.
    pub settings: Option<Settings>,
    /// The slave is closed, which reads of the master tell (`EIO`) when all output is taken.
    pub closed: bool,
    /// The session it is the controlling terminal of, and that session's foreground group.
    pub session: Option<InsidePid>,
    pub foreground: Option<InsidePid>,
    /// Typed (written to the master) and not yet read from the slave.
    pub input: pty_queue::Input,
    /// Printed (written to the slave) and not yet read from the master.
    pub output: Vec<u8>,
}

/// What ioctls set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// `struct termios2`: the four flag words, the discipline, the characters, the speeds.
    pub flags: [u32; 4],
    pub line: u8,
    pub characters: [u8; 19],
    pub speeds: [u32; 2],
    /// Rows, columns, width and height in pixels.
    pub window: [u16; 4],
    pub exclusive: bool,
    /// Of the master, when the sandbox holds it.
    pub packet_mode: bool,
    pub locked: bool,
}

/// An end of a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Position in [`Tables::ptys`](super::tables::Tables::ptys).
    pub pty: u32,
}

impl Settings {
    pub(super) fn termios(&self) -> Termios {
        let [input, output, control, local] = self.flags;
        let [input_speed, output_speed] = self.speeds;
        let (line, characters) = (self.line, self.characters);
        Termios {
            input,
            output,
            control,
            local,
            line,
            characters,
            input_speed,
            output_speed,
        }
    }

    fn read(end: BorrowedFd<'_>, master: bool) -> std::io::Result<Settings> {
        let t = termios(end)?;
        let window = tcgetwinsize(end)?;
        Ok(Settings {
            flags: [t.input, t.output, t.control, t.local],
            line: t.line,
            characters: t.characters,
            speeds: [t.input_speed, t.output_speed],
            window: [window.ws_row, window.ws_col, window.ws_xpixel, window.ws_ypixel],
            exclusive: int_from_ioctl(end, IntRequest::Exclusive)? != 0,
            packet_mode: master && int_from_ioctl(end, IntRequest::PtyPacket)? != 0,
            locked: master && int_from_ioctl(end, IntRequest::PtyLocked)? != 0,
        })
    }
}

/// Which terminal a live end belongs to.
pub(super) fn identity(live: &LiveDescription) -> Option<Identity> {
    let number = match live.device {
        (5, 2) => live.field("tty-index")?.parse().ok()?,
        (major, minor) => (major - 136) * 256 + minor,
    };
    Some(Identity { number })
}

pub(super) fn survey(live: &Live, position: usize) -> Result<Option<(&'static str, &'static str)>, Error> {
    let description = &live.descriptions[position];
    if identity(description).is_none() {
        return Ok(Some((
            "its number cannot be read from fdinfo",
            "use a kernel that tells it (4.20 or newer)",
        )));
    }
    let end = live.pull(position)?;
    match int_from_ioctl(end, IntRequest::LineDiscipline) {
        Ok(0) => Ok(None),
        Ok(_) => Ok(Some((
            "it has a line discipline other than N_TTY",
            "set the usual one first",
        ))),
        // Hung up: there is nothing to carry.
        Err(_) => Ok(None),
    }
}

pub(super) fn capture_master(capture: &mut Capture<'_>, position: usize) -> Result<End, Error> {
    let pty = find_or_add(capture, position, None, true)?;
    Ok(End { pty })
}

pub(super) fn capture_slave(
    capture: &mut Capture<'_>,
    position: usize,
    external: Option<ExternalId>,
) -> Result<End, Error> {
    let pty = find_or_add(capture, position, external, false)?;
    Ok(End { pty })
}

fn find_or_add(
    capture: &mut Capture<'_>,
    position: usize,
    external: Option<ExternalId>,
    master: bool,
) -> Result<u32, Error> {
    let live = capture.live;
    let description = &live.descriptions[position];
    let failed = || bad_state("a terminal", "its number cannot be read");
    let identity = identity(description).ok_or_else(failed)?;
    let end = live.pull(position)?;
    if let Some(&known) = capture.ptys.get(&identity) {
        let state = &mut capture.tables.ptys[known as usize];
        if master && let Ok(settings) = Settings::read(end, true) {
            state.settings = Some(settings);
            state.closed = is_closed(end).map_err(making("a terminal"))?;
        }
        state.external = state.external.or(external);
        return Ok(known);
    }
    let settings = match Settings::read(end, master) {
        Ok(settings) => Some(settings),
        // EIO: the master is closed.
        Err(e) if e.raw_os_error() == Some(libc::EIO) => None,
        Err(e) => return Err(making("a terminal")(e)),
    };
    let new = capture.tables.ptys.len() as u32;
    capture.tables.ptys.push(State {
        identity,
        external,
        settings,
        closed: master && is_closed(end).map_err(making("a terminal"))?,
        session: None,
        foreground: None,
        input: pty_queue::Input::default(),
        output: Vec::new(),
    });
    capture.ptys.insert(identity, new);
    Ok(new)
}

/// The live ends of one terminal.
#[derive(Clone, Copy, Default)]
pub(super) struct Ends {
    pub master: Option<usize>,
    pub slave: Option<usize>,
}

pub(super) fn ends(live: &Live) -> HashMap<Identity, Ends> {
    let mut all: HashMap<Identity, Ends> = HashMap::new();
    for (position, description) in live.descriptions.iter().enumerate() {
        let class = class::of(live, description);
        if !matches!(class, class::Class::PtyMaster | class::Class::PtySlave) {
            continue;
        }
        let Some(identity) = identity(description) else {
            continue;
        };
        let ends = all.entry(identity).or_default();
        if class == class::Class::PtyMaster {
            ends.master = Some(position);
        } else {
            ends.slave = Some(position);
        }
    }
    all
}

/// Once all descriptions are known: queues, and who is in the foreground.
pub(super) fn capture_controlling(capture: &mut Capture<'_>) -> Result<(), Error> {
    if capture.tables.ptys.is_empty() {
        return Ok(());
    }
    let ends = ends(capture.live);
    for state in &mut capture.tables.ptys {
        let Ends { master, slave } = ends.get(&state.identity).copied().unwrap_or_default();
        let (Some(master), Some(settings)) = (master, state.settings) else {
            continue;
        };
        let master = capture.live.pull(master)?;
        let slave = slave.map(|slave| capture.live.pull(slave)).transpose()?;
        // One that was never open has nothing to say, and would be told apart after it was.
        if slave.is_none() && !state.closed {
            continue;
        }
        let own = slave.is_none().then(|| open_peer(master, libc::O_RDWR as u32));
        let own = own.transpose().map_err(making("the queues of a terminal"))?;
        let Some(slave) = slave.or(own.as_ref().map(AsFd::as_fd)) else {
            continue;
        };
        let pair =
            pty_queue::Pair::open(master, slave, &settings).map_err(making("the queues of a terminal"))?;
        (state.input, state.output) = pair.peek().map_err(making("the queues of a terminal"))?;
    }
    for of_process in session::all(capture.live)? {
        let found = capture
            .tables
            .ptys
            .iter_mut()
            .find(|p| Some(p.identity) == of_process.terminal);
        if let Some(state) = found {
            state.session = of_process.session;
            state.foreground = of_process.foreground;
        }
    }
    Ok(())
}

pub(super) fn same(wanted: &State, live: &LiveDescription) -> bool {
    identity(live) == Some(wanted.identity)
}

/// Puts the settings and queues of live terminals back, and makes those that are gone.
pub(super) fn restore_all(restore: &mut Restore<'_>) -> Result<(), Error> {
    let live_ends = if restore.wanted.ptys.is_empty() {
        HashMap::new()
    } else {
        ends(restore.live)
    };
    for (position, state) in restore.wanted.ptys.iter().enumerate() {
        let of_pty = |kind: &Kind| match kind {
            Kind::PtyMaster(end) => (end.pty as usize == position).then_some(true),
            Kind::PtySlave(end) => (end.pty as usize == position).then_some(false),
            _ => None,
        };
        let wanted: Vec<(usize, bool)> = restore
            .wanted
            .descriptions
            .iter()
            .enumerate()
            .filter_map(|(at, d)| Some((at, of_pty(&d.kind)?)))
            .collect();
        let live = live_ends.get(&state.identity).copied().unwrap_or_default();
        restore_one(restore, state, live, &wanted)?;
    }
    Ok(())
}

fn restore_one(
    restore: &mut Restore<'_>,
    state: &State,
    live: Ends,
    wanted: &[(usize, bool)],
) -> Result<(), Error> {
    let kept_master = wanted
        .iter()
        .find_map(|&(at, master)| if master { restore.kept[at] } else { None });
    let wants_master = wanted.iter().any(|&(_, master)| master);
    let mut new_master = None;
    if wants_master && kept_master.is_none() {
        let (environment, number) = (restore.environment, state.identity.number);
        new_master = Some(match environment.terminals.master(number) {
            Some(master) => master.try_clone_to_owned().map_err(making("a terminal"))?,
            None => make_master(environment.root, number)?,
        });
    }
    for &(at, master) in wanted {
        if restore.kept[at].is_some() {
            continue;
        }
        let flags = restore.wanted.descriptions[at].flags;
        restore.made[at] = Some(if master {
            let master = new_master.as_ref().ok_or_else(|| {
                bad_state(
                    restore.show(at),
                    "a second description of a terminal's master cannot be made",
                )
            })?;
            master.try_clone().map_err(making("a terminal"))?
        } else {
            open_slave(restore, state, live, new_master.as_ref(), flags)?
        });
    }
    let Some(settings) = &state.settings else {
        return Ok(());
    };
    if is_gone(restore, state) {
        return Ok(());
    }
    let master = match (&new_master, kept_master) {
        (Some(new), _) => Some(new.as_fd()),
        (None, Some(kept)) => Some(restore.live.pull(kept)?),
        (None, None) => None,
    };
    let slave = wanted
        .iter()
        .find(|(_, master)| !master)
        .map(|&(at, _)| restore.object(at))
        .transpose()?;
    let own = master.filter(|_| state.closed);
    let own = own.map(|master| open_peer(master, libc::O_RDWR as u32));
    let own = own.transpose().map_err(making("a terminal"))?;
    let slave = slave.or(own.as_ref().map(AsFd::as_fd));
    put_back(state, settings, master, slave).map_err(making(format!("terminal {}", state.identity.number)))
}

fn put_back(
    state: &State,
    settings: &Settings,
    master: Option<BorrowedFd<'_>>,
    slave: Option<BorrowedFd<'_>>,
) -> std::io::Result<()> {
    let Some(any) = slave.or(master) else {
        return Ok(());
    };
    let now = Settings::read(any, false)?;
    if (now.flags, now.line, now.characters, now.speeds)
        != (
            settings.flags,
            settings.line,
            settings.characters,
            settings.speeds,
        )
    {
        set_termios(any, &settings.termios())?;
    }
    if now.exclusive != settings.exclusive {
        set_exclusive(any, settings.exclusive)?;
    }
    // The window of a terminal that the caller holds is as large as the caller says.
    if state.external.is_none() && now.window != settings.window {
        let [ws_row, ws_col, ws_xpixel, ws_ypixel] = settings.window;
        tcsetwinsize(
            any,
            Winsize {
                ws_row,
                ws_col,
                ws_xpixel,
                ws_ypixel,
            },
        )?;
    }
    if let Some(master) = master {
        let now = Settings::read(master, true)?;
        if let Some(slave) = slave {
            pty_queue::Pair::open(master, slave, &now)?.restore(&state.input, &state.output, settings)?;
        }
        if now.packet_mode != settings.packet_mode {
            int_to_ioctl(master, IntSetting::PtyPacket, settings.packet_mode.into())?;
        }
        if now.locked != settings.locked {
            int_to_ioctl(master, IntSetting::PtyLocked, settings.locked.into())?;
        }
    }
    Ok(())
}

/// Numbers are given out lowest first: others are taken until the wanted one comes.
pub(super) fn make_master(root: BorrowedFd<'_>, wanted: u32) -> Result<OwnedFd, Error> {
    let what = || format!("terminal {wanted}");
    let flags = (libc::O_RDWR | libc::O_NOCTTY) as u32;
    let mut others = Vec::new();
    loop {
        let master = open_in_root(root, b"/dev/ptmx", flags).map_err(making(what()))?;
        let number = int_from_ioctl(&master, IntRequest::PtyNumber).map_err(making(what()))? as u32;
        if number == wanted {
            int_to_ioctl(&master, IntSetting::PtyLocked, 0).map_err(making(what()))?;
            return Ok(master);
        }
        if number > wanted {
            return Err(bad_state(what(), "its number is taken by another terminal"));
        }
        others.push(master);
    }
}

fn open_slave(
    restore: &Restore<'_>,
    state: &State,
    live: Ends,
    new_master: Option<&OwnedFd>,
    flags: u32,
) -> Result<OwnedFd, Error> {
    let what = || format!("terminal {}", state.identity.number);
    if let Some(master) = new_master {
        return open_peer(master.as_fd(), flags).map_err(making(what()));
    }
    if state.settings.is_none() {
        return hung_up(restore, flags);
    }
    if let Some(slave) = live.slave {
        return reopen(restore.live.pull(slave)?, flags).map_err(making(what()));
    }
    if let Some(id) = state.external
        && let Some(end) = restore.environment.externals.end(id)
    {
        return reopen(end, flags).map_err(making(what()));
    }
    if is_gone(restore, state) {
        return hung_up(restore, flags);
    }
    open_in_root(restore.environment.root, &path_of(state.identity.number), flags).map_err(making(what()))
}

pub(super) fn path_of(number: u32) -> Vec<u8> {
    format!("/dev/pts/{number}").into_bytes()
}

/// Whether it was the terminal of a caller who has hung up since: nobody in the sandbox has its master.
fn is_gone(restore: &Restore<'_>, state: &State) -> bool {
    let is_master = |kind: &Kind| match kind {
        Kind::PtyMaster(end) => restore.wanted.ptys[end.pty as usize].identity == state.identity,
        _ => false,
    };
    let look = || {
        open_in_root(
            restore.environment.root,
            &path_of(state.identity.number),
            libc::O_PATH as u32,
        )
    };
    let has_master = restore.wanted.descriptions.iter().any(|d| is_master(&d.kind));
    !has_master && look().is_err()
}

const OPEN: i32 = libc::O_NOCTTY | libc::O_CLOEXEC;

/// A slave whose master is closed.
fn hung_up(restore: &Restore<'_>, flags: u32) -> Result<OwnedFd, Error> {
    let open = (libc::O_RDWR | libc::O_NOCTTY) as u32;
    let master =
        open_in_root(restore.environment.root, b"/dev/ptmx", open).map_err(making("a hung up terminal"))?;
    int_to_ioctl(&master, IntSetting::PtyLocked, 0).map_err(making("a hung up terminal"))?;
    open_peer(master.as_fd(), flags).map_err(making("a hung up terminal"))
}

/// Opens the slave of a master, however its device may be seen.
pub(super) fn open_peer(master: BorrowedFd<'_>, flags: u32) -> std::io::Result<OwnedFd> {
    let peer = OpenptFlags::from_bits_retain((flags & libc::O_ACCMODE as u32) | OPEN as u32);
    Ok(ioctl_tiocgptpeer(master, peer)?)
}

/// Whether the slave of a master has been open and is not any more.
fn is_closed(master: BorrowedFd<'_>) -> std::io::Result<bool> {
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let mut polled = [PollFd::from_borrowed_fd(master, PollFlags::IN)];
    rustix::event::poll(&mut polled, Some(&now))?;
    Ok(polled[0].revents().contains(PollFlags::HUP))
}

/// Sessions get their terminal and its foreground group back.
pub(super) fn restore_sessions(restore: &Restore<'_>, processes: &mut [Process]) -> Result<(), Error> {
    if restore.wanted.ptys.iter().all(|p| p.session.is_none()) {
        return Ok(());
    }
    let now = session::all(restore.live)?;
    for (position, state) in restore.wanted.ptys.iter().enumerate() {
        let (Some(session), Some(foreground)) = (state.session, state.foreground) else {
            continue;
        };
        if is_gone(restore, state) {
            continue;
        }
        let right = now.iter().any(|p| {
            p.terminal == Some(state.identity)
                && p.session == Some(session)
                && p.foreground == Some(foreground)
        });
        let is_new = restore.wanted.descriptions.iter().enumerate().any(|(at, d)| {
            matches!(d.kind, Kind::PtyMaster(end) if end.pty as usize == position && restore.made[at].is_some())
        });
        if right && !is_new {
            continue;
        }
        session::set_foreground(restore, processes, position, session, foreground, &now)?;
    }
    Ok(())
}
