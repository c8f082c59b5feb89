//! Tar archives (ustar, pax and GNU), read with suspicion and written deterministically.
//!
//! Formats: POSIX.1-2017 `pax`; "Basic Tar Format" and "Storing Sparse Files" of the GNU tar manual;
//! the SCHILY.* records are described in star(5).

pub(crate) mod acl;
pub(crate) mod pax;
pub(crate) mod read;
pub(crate) mod write;

/// Size of a tar record.
pub(crate) const BLOCK: usize = 512;

/// Pax record by which this crate marks kinds of files that tar has no type for. Others see an empty file.
pub(crate) const KIND_RECORD: &str = "DELTABOX.kind";
