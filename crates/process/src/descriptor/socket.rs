//! Sockets of all families: told apart here, carried by one module per family.

use super::capture::Capture;
use super::contents::Contents;
use super::error::{Error, bad_state};
use super::live::Live;
use super::restore::Restore;
use super::tables::Kind;
use crate::stop::Process;

pub(super) fn survey(_live: &Live, _position: usize) -> Result<Option<(&'static str, &'static str)>, Error> {
    Ok(Some((
        "sockets are not carried yet",
        "close it before the checkpoint",
    )))
}

pub(super) fn capture(_capture: &mut Capture<'_>, _position: usize) -> Result<Kind, Error> {
    Err(bad_state("a socket", "it is of a family that cannot be carried"))
}

pub(super) fn capture_queues(_capture: &mut Capture<'_>, _contents: &mut dyn Contents) -> Result<(), Error> {
    Ok(())
}

pub(super) fn restore_all(_restore: &mut Restore<'_>, _processes: &mut [Process]) -> Result<(), Error> {
    Ok(())
}
