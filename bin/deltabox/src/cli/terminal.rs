//! The local terminal: size and raw mode.

use deltabox_api::WindowSize;
use rustix::fd::BorrowedFd;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

/// What a terminal inside gets when there is none outside.
const DEFAULT_SIZE: WindowSize = WindowSize { rows: 24, cols: 80 };

/// Size of the terminal we were started from, whichever of our streams it is.
pub fn window_size() -> WindowSize {
    let streams = [
        rustix::stdio::stdin(),
        rustix::stdio::stdout(),
        rustix::stdio::stderr(),
    ];
    let size = streams.into_iter().find_map(|fd| tcgetwinsize(fd).ok());
    match size {
        Some(size) if size.ws_row > 0 && size.ws_col > 0 => WindowSize {
            rows: size.ws_row,
            cols: size.ws_col,
        },
        _ => DEFAULT_SIZE,
    }
}

/// The terminal on standard input in raw mode, for as long as this lives.
pub struct RawMode {
    fd: BorrowedFd<'static>,
    before: Termios,
}

impl RawMode {
    /// Does nothing if standard input is no terminal.
    pub fn enter() -> Option<Self> {
        let fd = rustix::stdio::stdin();
        if !isatty(fd) {
            return None;
        }
        let before = tcgetattr(fd).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(fd, OptionalActions::Now, &raw).ok()?;
        Some(Self { fd, before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // Drain: output that relies on raw mode must be shown before it ends.
        let _ = tcsetattr(self.fd, OptionalActions::Drain, &self.before);
    }
}
