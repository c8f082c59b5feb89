//! What was typed or printed on a pseudo terminal and not yet read.
//!
//! There is no way to look without taking out, so it is taken out and written back, with the terminal made
//! transparent for the moment: no echo, no signals, no translation, no packet mode. All of it happens on
//! descriptions of our own, while everybody who could notice is stopped.

use std::os::fd::{BorrowedFd, OwnedFd};

use deltabox_sys::fd::{IntRequest, IntSetting, Termios, int_from_ioctl, int_to_ioctl, set_termios};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::place::reopen;
use super::pty::Settings;

/// How long an echo may take: it comes within microseconds.
const ECHO_LIMIT_NS: i64 = 100_000_000;

/// What was typed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    pub bytes: Vec<u8>,
    /// In line mode: how many of them a read returns now; the rest is a line not ended yet.
    pub complete: usize,
}

/// Both ends of a terminal, made transparent; put back as it was when dropped.
pub(super) struct Pair<'a> {
    master: BorrowedFd<'a>,
    /// A description of our own.
    slave: OwnedFd,
    settings: &'a Settings,
    master_flags: OFlags,
}

impl<'a> Pair<'a> {
    pub(super) fn open(
        master: BorrowedFd<'a>,
        slave: BorrowedFd<'_>,
        settings: &'a Settings,
    ) -> std::io::Result<Pair<'a>> {
        let slave = reopen(slave, (libc::O_RDWR | libc::O_NONBLOCK) as u32)?;
        let master_flags = fcntl_getfl(master)?;
        let pair = Pair {
            master,
            slave,
            settings,
            master_flags,
        };
        fcntl_setfl(master, master_flags | OFlags::NONBLOCK)?;
        if settings.packet_mode {
            int_to_ioctl(master, IntSetting::PtyPacket, 0)?;
        }
        Ok(pair)
    }

    fn is_line_mode(&self) -> bool {
        self.settings.flags[3] & libc::ICANON != 0
    }

    /// Settings under which bytes pass as they are; only line mode is kept, because a change of it regroups what is
    /// queued.
    fn transparent(&self, line_mode: bool) -> Termios {
        Termios {
            input: 0,
            output: 0,
            local: if line_mode { libc::ICANON } else { 0 },
            characters: [0; 19],
            ..self.settings.termios()
        }
    }

    /// Looks at both queues.
    pub(super) fn peek(&self) -> std::io::Result<(Input, Vec<u8>)> {
        self.flush();
        let output = if self.pending(self.master)? > 0 {
            take(self.master)?
        } else {
            Vec::new()
        };
        let complete = int_from_ioctl(&self.slave, IntRequest::InputQueue)? as usize;
        let mut input = Input {
            bytes: Vec::new(),
            complete,
        };
        if self.is_line_mode() || complete > 0 {
            set_termios(&self.slave, &self.transparent(false))?;
            if int_from_ioctl(&self.slave, IntRequest::InputQueue)? > 0 {
                input.bytes = take(std::os::fd::AsFd::as_fd(&self.slave))?;
            }
        }
        let nothing = input.bytes.is_empty() && output.is_empty();
        if !nothing {
            self.write(&input, &output)?;
        }
        set_termios(&self.slave, &self.settings.termios())?;
        Ok((input, output))
    }

    /// Replaces both queues, and leaves the terminal with the wanted settings.
    pub(super) fn restore(&self, input: &Input, output: &[u8], wanted: &Settings) -> std::io::Result<()> {
        let (now_input, now_output) = self.peek()?;
        if (&now_input, now_output.as_slice()) != (input, output) {
            take_all(self.master)?;
            set_termios(&self.slave, &self.transparent(false))?;
            take_all(std::os::fd::AsFd::as_fd(&self.slave))?;
            self.write_as(input, output, wanted.flags[3] & libc::ICANON != 0)?;
        }
        set_termios(&self.slave, &wanted.termios())?;
        Ok(())
    }

    fn write(&self, input: &Input, output: &[u8]) -> std::io::Result<()> {
        self.write_as(input, output, self.is_line_mode())
    }

    fn write_as(&self, input: &Input, output: &[u8], line_mode: bool) -> std::io::Result<()> {
        let mut echoing = self.transparent(line_mode);
        echoing.local |= libc::ECHO;
        set_termios(&self.slave, &echoing)?;
        let (done, rest) = input.bytes.split_at(input.complete.min(input.bytes.len()));
        write_whole(self.master, done)?;
        if line_mode && done.last().is_some_and(|&byte| byte != b'\n') {
            // Ended by end-of-file instead of a newline.
            self.take_echo(done.len())?;
            let mut with_end = self.transparent(true);
            with_end.characters[libc::VEOF] = 4;
            set_termios(&self.slave, &with_end)?;
            write_whole(self.master, &[4])?;
            self.flush();
            set_termios(&self.slave, &echoing)?;
            write_whole(self.master, rest)?;
            self.take_echo(rest.len())?;
        } else {
            write_whole(self.master, rest)?;
            self.take_echo(input.bytes.len())?;
        }
        set_termios(&self.slave, &self.transparent(line_mode))?;
        write_whole(std::os::fd::AsFd::as_fd(&self.slave), output)?;
        self.flush();
        Ok(())
    }

    /// Takes the echo of what was written to the master. What is written is moved to the line discipline by a worker of
    /// the kernel, which nothing waits for while there are complete lines already; but once it has been echoed it is
    /// there, and the settings can be changed again. A terminal whose output is stopped (`^S`) does not echo.
    fn take_echo(&self, mut count: usize) -> std::io::Result<()> {
        let limit = Timespec {
            tv_sec: 0,
            tv_nsec: ECHO_LIMIT_NS,
        };
        let mut buffer = [0; 4096];
        while count > 0 {
            let mut ends = [PollFd::from_borrowed_fd(self.master, PollFlags::IN)];
            if poll(&mut ends, Some(&limit))? == 0 {
                return Ok(());
            }
            let wanted = count.min(buffer.len());
            count -= rustix::io::read(self.master, &mut buffer[..wanted])?;
        }
        Ok(())
    }

    fn pending(&self, end: BorrowedFd<'_>) -> std::io::Result<i32> {
        int_from_ioctl(end, IntRequest::InputQueue)
    }

    /// Data on its way is moved by a worker of the kernel; polling an end waits for it.
    fn flush(&self) {
        let mut ends = [
            PollFd::from_borrowed_fd(self.master, PollFlags::IN),
            PollFd::new(&self.slave, PollFlags::IN),
        ];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // What is asked for is the side effect.
        let _ = poll(&mut ends, Some(&now));
    }
}

impl Drop for Pair<'_> {
    fn drop(&mut self) {
        let restored = fcntl_setfl(self.master, self.master_flags).is_ok()
            && (!self.settings.packet_mode || int_to_ioctl(self.master, IntSetting::PtyPacket, 1).is_ok());
        if !restored {
            tracing::warn!("a terminal's master could not be put back into its mode");
        }
    }
}

/// Reads what there is.
fn take(end: BorrowedFd<'_>) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match rustix::io::read(end, &mut buffer) {
            Ok(0) | Err(Errno::AGAIN | Errno::IO) => return Ok(bytes),
            Ok(n) => bytes.extend_from_slice(&buffer[..n]),
            Err(e) => return Err(e.into()),
        }
    }
}

fn take_all(end: BorrowedFd<'_>) -> std::io::Result<()> {
    take(end).map(drop)
}

fn write_whole(end: BorrowedFd<'_>, mut bytes: &[u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        let n = rustix::io::write(end, bytes)?;
        bytes = &bytes[n..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).unwrap();
        unlockpt(&master).unwrap();
        let slave = ioctl_tiocgptpeer(&master, flags).unwrap();
        (master, slave)
    }

    fn settings(master: &OwnedFd) -> Settings {
        let t = deltabox_sys::fd::termios(master).unwrap();
        Settings {
            flags: [t.input, t.output, t.control, t.local],
            line: t.line,
            characters: t.characters,
            speeds: [t.input_speed, t.output_speed],
            window: [0; 4],
            exclusive: false,
            packet_mode: false,
            locked: false,
        }
    }

    #[test]
    fn lines_and_a_line_not_ended_stay_as_they_are() {
        let (master, slave) = pair();
        write_whole(master.as_fd(), b"one\ntwo\nthr").unwrap();
        let settings = settings(&master);
        let mut echo = [0; 64];
        assert_eq!(rustix::io::read(&master, &mut echo).unwrap(), 13, "the echo");
        for _ in 0..3 {
            let pair = Pair::open(master.as_fd(), slave.as_fd(), &settings).unwrap();
            let (input, output) = pair.peek().unwrap();
            assert_eq!(
                (input.bytes.as_slice(), input.complete),
                (&b"one\ntwo\nthr"[..], 8)
            );
            assert!(output.is_empty());
        }
        let mut line = [0; 64];
        assert_eq!(rustix::io::read(&slave, &mut line).unwrap(), 4);
        write_whole(master.as_fd(), b"ee\n").unwrap();
        assert_eq!(rustix::io::read(&slave, &mut line).unwrap(), 4);
        assert_eq!(rustix::io::read(&slave, &mut line).unwrap(), 6);
        assert_eq!(&line[..6], b"three\n");
    }

    #[test]
    fn both_queues_are_replaced() {
        let (master, slave) = pair();
        write_whole(slave.as_fd(), b"prompt> ").unwrap();
        write_whole(master.as_fd(), b"a\n").unwrap();
        let settings = settings(&master);
        let (input, output) = Pair::open(master.as_fd(), slave.as_fd(), &settings)
            .unwrap()
            .peek()
            .unwrap();
        assert_eq!(output, b"prompt> a\r\n");
        let mut buffer = [0; 64];
        rustix::io::read(&master, &mut buffer).unwrap();
        rustix::io::read(&slave, &mut buffer).unwrap();
        write_whole(master.as_fd(), b"later").unwrap();
        let pair = Pair::open(master.as_fd(), slave.as_fd(), &settings).unwrap();
        pair.restore(&input, &output, &settings).unwrap();
        drop(pair);
        assert_eq!(rustix::io::read(&slave, &mut buffer).unwrap(), 2);
        let n = rustix::io::read(&master, &mut buffer).unwrap();
        assert_eq!(&buffer[..n], b"prompt> a\r\n");
    }
}
