//! IPC objects that belong to the sandbox and not to a process: System V shared memory, semaphores and message queues,
//! and POSIX message queues.
//!
//! They are read by a thread of ours in the sandbox's IPC namespace, and those that are not what they were are removed
//! and made again with the same id (`/proc/sys/kernel/*_next_id`, CONFIG_CHECKPOINT_RESTORE). What shows who used an
//! object last is put back by having that process use it. Times of use cannot be set, and a process that has ended by
//! the time of a restore is not shown as an object's last user; the creator of a segment is not, either.
//!
//! Where there is no object, a checkpoint costs four short reads.

mod attach;
mod messages;
pub mod mqueue;
mod namespace;
mod segments;
mod semaphores;
mod undo;

use std::collections::HashMap;
use std::fs::File;
use std::io;

use deltabox_sys::sysvipc;
use serde::{Deserialize, Serialize};

pub(crate) use attach::Attachment;
pub use messages::Queue;
pub use namespace::Namespace;
pub use segments::Segment;
pub use semaphores::{Semaphore, Set};

use crate::error::TraceError;
use crate::ids::{FirstId, HostPid, InsidePid};
use crate::image::Image;
use crate::memory::maps::Vma;
use crate::shared::Key;
use crate::stop::{Process, Tree};
use crate::survey::Refusal;
use namespace::Kind;

/// All IPC objects at one instant. What segments hold is with the rest of the shared memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// System V shared memory.
    pub segments: Vec<Segment>,
    /// System V semaphores.
    pub sets: Vec<Set>,
    /// System V message queues.
    pub queues: Vec<Queue>,
    /// POSIX message queues that have a name.
    pub named: Vec<mqueue::Queue>,
}

/// Who may use an object; ids are counted from the sandbox's first one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Permissions {
    pub key: i32,
    pub owner: (u32, u32),
    pub creator: (u32, u32),
    pub mode: u32,
}

impl Permissions {
    fn of(raw: &sysvipc::Permissions, first: FirstId) -> Permissions {
        let inside = |(user, group): (u32, u32)| (first.inside(user), first.inside(group));
        Permissions {
            key: raw.key,
            owner: inside(raw.owner),
            creator: inside(raw.creator),
            mode: raw.mode & 0o777,
        }
    }

    fn raw(&self, first: FirstId) -> sysvipc::Permissions {
        let outside = |(user, group): (u32, u32)| (first.outside(user), first.outside(group));
        sysvipc::Permissions {
            key: self.key,
            owner: outside(self.owner),
            creator: outside(self.creator),
            mode: self.mode,
        }
    }

    /// As they are while an object is being filled, by processes that may have lost the right to use it since.
    fn open(&self, first: FirstId) -> sysvipc::Permissions {
        sysvipc::Permissions {
            mode: 0o666,
            ..self.raw(first)
        }
    }
}

/// What the engine knows of the sandbox's IPC objects.
#[derive(Default)]
pub struct Ipc {
    /// Of this process.
    namespace: Option<(HostPid, Option<Namespace>)>,
    /// Files of segments that nobody had attached when they were last seen.
    detached: HashMap<i32, File>,
}

fn failed(what: &str) -> impl FnOnce(io::Error) -> TraceError {
    let what = what.to_owned();
    move |source| TraceError::Ipc { what, source }
}

fn refuse_all(tree: &Tree) -> Refusal {
    let first = tree.processes.first();
    Refusal {
        pid: first.map_or(InsidePid(0), Process::inside),
        name: first.map_or_else(String::new, |process| process.name().to_owned()),
        what: "System V IPC objects of the sandbox".to_owned(),
        why: "they could not be made again with the same ids: /proc/sys/kernel/*_next_id cannot be written"
            .to_owned(),
        remedy:
            "use a kernel with CONFIG_CHECKPOINT_RESTORE and a writable /proc/sys, or remove them (ipcrm)"
                .to_owned(),
    }
}

/// The processes, by their host pid.
fn names(tree: &Tree) -> HashMap<i32, InsidePid> {
    let processes = tree.processes.iter();
    processes
        .map(|process| (process.pid().raw(), process.inside()))
        .collect()
}

impl Ipc {
    /// Finds the sandbox's namespace, if that has not been done yet: it takes a moment.
    pub(crate) fn look(&mut self, init: HostPid) -> Result<(), TraceError> {
        if self.namespace.as_ref().is_none_or(|(of, _)| *of != init) {
            let namespace = Namespace::of(init).map_err(failed("look at the IPC namespace"))?;
            self.namespace = Some((init, namespace));
        }
        Ok(())
    }

    /// The sandbox's namespace, once it has been looked at; `None` when it is our own.
    pub(crate) fn namespace(&self) -> Option<&Namespace> {
        self.namespace.as_ref()?.1.as_ref()
    }

    /// Whether there is any object: they outlive the processes that made them.
    pub(crate) fn has_objects(&mut self, init: HostPid) -> Result<bool, TraceError> {
        self.look(init)?;
        let Some(namespace) = self.namespace() else {
            return Ok(false);
        };
        let has = || {
            for kind in [Kind::Shm, Kind::Sem, Kind::Msg] {
                if !namespace.ids(kind)?.is_empty() {
                    return Ok(true);
                }
            }
            Ok(!namespace.queue_names()?.is_empty())
        };
        has().map_err(failed("list IPC objects"))
    }

    /// Reads all System V objects, and finds out what cannot be carried. Nothing is changed.
    pub(crate) fn survey(
        &mut self,
        first: FirstId,
        tree: &mut Tree,
        refusals: &mut Vec<Refusal>,
    ) -> Result<State, TraceError> {
        let Some((_, Some(namespace))) = &self.namespace else {
            return Ok(State::default());
        };
        let reading = || failed("list IPC objects");
        let [segments, sets, queues] = [Kind::Shm, Kind::Sem, Kind::Msg].map(|kind| namespace.ids(kind));
        let (segments, sets, queues) = (
            segments.map_err(reading())?,
            sets.map_err(reading())?,
            queues.map_err(reading())?,
        );
        let mut state = State::default();
        let none = segments.is_empty() && sets.is_empty() && queues.is_empty();
        if !none && !namespace::ids_can_be_chosen() {
            refusals.push(refuse_all(tree));
            return Ok(state);
        }
        if segments.is_empty() {
            self.detached.clear();
        } else {
            state.segments =
                segments::survey(namespace, &segments, first, &mut self.detached, tree, refusals)?;
        }
        if !sets.is_empty() {
            state.sets = semaphores::read(namespace, &sets, first, tree)?;
            undo::survey(tree, &state.sets, refusals)?;
        }
        if !queues.is_empty() {
            state.queues = messages::read(namespace, &queues, first, tree)?;
        }
        Ok(state)
    }

    /// Adds the POSIX message queues. They are emptied and filled again for it, which nobody can see.
    pub(crate) fn capture_named(&self, state: &mut State, first: FirstId) -> Result<(), TraceError> {
        if let Some(namespace) = self.namespace() {
            state.named = mqueue::read(namespace, first).map_err(failed("read the POSIX message queues"))?;
        }
        Ok(())
    }

    /// Segments that no process has attached.
    pub(crate) fn detached(&self) -> impl Iterator<Item = (Key, &File)> {
        self.detached.iter().map(|(id, file)| (segments::key(*id), file))
    }

    /// Removes segments that are not wanted and makes those that are missing. Returns an open file for each that no
    /// process has attached.
    pub(crate) fn restore_segments(
        &mut self,
        first: FirstId,
        tree: &mut Tree,
        image: &Image,
    ) -> Result<HashMap<Key, File>, TraceError> {
        self.detached.clear();
        match &self.namespace {
            Some((_, Some(namespace))) => segments::restore(namespace, first, tree, &image.ipc.segments),
            _ => Ok(HashMap::new()),
        }
    }

    /// Restores everything but the content of segments, once all processes are there and have them attached.
    pub(crate) fn restore(&self, first: FirstId, tree: &mut Tree, image: &Image) -> Result<(), TraceError> {
        let Some(namespace) = self.namespace() else {
            return Ok(());
        };
        segments::finish(namespace, first, &image.ipc.segments)?;
        semaphores::restore(namespace, first, tree, &image.ipc.sets)?;
        messages::restore(namespace, first, tree, &image.ipc.queues)?;
        mqueue::restore(namespace, first, &image.ipc.named)
            .map_err(failed("restore the POSIX message queues"))
    }
}

/// The id of the System V segment behind a mapping as an image has it.
pub(crate) fn segment_of(vma: &Vma) -> Option<i32> {
    let (device, id) = crate::shared::key_of(vma)?;
    (device == crate::shared::SEGMENTS)
        .then(|| i32::try_from(id).ok())
        .flatten()
}
