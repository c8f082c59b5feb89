//! Character devices without a state: null, zero, full, random, urandom; and `/dev/tty`.

use serde::{Deserialize, Serialize};

use super::live::{Live, LiveDescription};
use super::place::Place;

/// A character device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    pub place: Place,
    pub device: (u32, u32),
    /// `/dev/tty`: it leads to the terminal of the process that opens it, which therefore has to do so itself.
    pub of_opener: bool,
}

pub(super) fn capture(live: &Live, description: &LiveDescription, of_opener: bool) -> State {
    State {
        place: Place::of(live, description),
        device: description.device,
        of_opener,
    }
}

pub(super) fn same(wanted: &State, live: &Live, description: &LiveDescription) -> bool {
    // A node below the root follows it; one elsewhere stays where it is. What counts is the device.
    let right_mount = match wanted.place {
        Place::Root { .. } => description.mount == live.root_mount,
        Place::Mount { .. } | Place::Deleted { .. } => true,
    };
    description.device == wanted.device && description.mode & libc::S_IFMT == libc::S_IFCHR && right_mount
}
