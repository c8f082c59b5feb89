//! Objects whose other end the caller holds: the stdio pipes of a command, the terminal of an interactive one.
//!
//! They are outside the state. A checkpoint notes which descriptors lead to them; a rollback leaves them as they
//! are and never drains or rewinds them; a process that is re-created gets its end back from the caller's
//! duplicate.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::{Deserialize, Serialize};

use super::tables::ObjectKey;

/// The caller's name for one of its objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ExternalId(pub u64);

/// The objects of the caller that programs of the sandbox may have open.
#[derive(Debug, Default)]
pub struct Externals {
    by_object: HashMap<ObjectKey, ExternalId>,
    ends: HashMap<ExternalId, OwnedFd>,
}

impl Externals {
    /// An empty registry.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers the object behind `sandbox_end`, the end that programs hold, and takes a duplicate of it, from
    /// which a re-created process gets the end back.
    ///
    /// A duplicate keeps the object's other side from seeing an end of file when the last program closes it: give
    /// none ([`Externals::register_object`]) when that matters more than re-creation.
    ///
    /// # Errors
    /// When the descriptor cannot be read or duplicated.
    pub fn register(&mut self, id: ExternalId, sandbox_end: BorrowedFd<'_>) -> io::Result<()> {
        let object = object_of(sandbox_end)?;
        let end = sandbox_end.try_clone_to_owned()?;
        self.by_object.insert(object, id);
        self.ends.insert(id, end);
        Ok(())
    }

    /// Registers an object without a duplicate of its end: it can be kept, but not given to a new process.
    ///
    /// # Errors
    /// When the descriptor cannot be read.
    pub fn register_object(&mut self, id: ExternalId, any_end: BorrowedFd<'_>) -> io::Result<()> {
        self.by_object.insert(object_of(any_end)?, id);
        Ok(())
    }

    /// Gives an end for re-created processes in place of an object that is gone, such as the stream of a command
    /// whose caller does not listen any more. What is given is not taken for the object itself.
    pub fn substitute(&mut self, id: ExternalId, end: OwnedFd) {
        self.ends.insert(id, end);
    }

    /// Whether an object is registered or has a substitute.
    #[must_use]
    pub fn knows(&self, id: ExternalId) -> bool {
        self.ends.contains_key(&id) || self.by_object.values().any(|known| *known == id)
    }

    /// Forgets an object.
    pub fn remove(&mut self, id: ExternalId) {
        self.by_object.retain(|_, other| *other != id);
        self.ends.remove(&id);
    }

    pub(super) fn find(&self, object: ObjectKey) -> Option<ExternalId> {
        self.by_object.get(&object).copied()
    }

    pub(super) fn end(&self, id: ExternalId) -> Option<BorrowedFd<'_>> {
        self.ends.get(&id).map(AsFd::as_fd)
    }
}

fn object_of(fd: BorrowedFd<'_>) -> io::Result<ObjectKey> {
    let attributes = rustix::fs::fstat(fd)?;
    Ok(ObjectKey {
        dev: attributes.st_dev,
        ino: attributes.st_ino,
    })
}
