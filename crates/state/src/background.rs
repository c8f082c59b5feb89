//! Work off the critical path, on one thread for all sandboxes: durability, old mounts, squashing.

use std::any::Any;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use deltabox_layers::{SquashJob, Store, Top};

use crate::catalog::{Catalog, CheckpointRecord, SandboxRecord};
use crate::engine::Kept;
use crate::error::{Error, Result};
use crate::id::SandboxId;
use crate::sandbox::Handle;

pub(crate) enum Work {
    /// Sync the store, then write the sandbox's record and these checkpoints.
    Durable(Box<Pending>),
    /// Merge layers, so that a long history is not felt.
    Squash(SquashJob),
    /// The sandbox is gone: forget its record, and whatever still waits for it.
    Forget {
        sandbox: SandboxId,
        done: Sender<Result<()>>,
    },
    /// Something whose release can take long.
    Drop(Box<dyn Any + Send>),
    Stop,
}

/// The queue to the worker.
#[derive(Clone)]
pub(crate) struct Background {
    queue: Sender<Work>,
}

impl Background {
    pub fn start(store: Store, catalog: Arc<Catalog>, kept: Arc<Kept>) -> Result<(Self, JoinHandle<()>)> {
        let (queue, receive) = channel();
        let worker = Worker {
            store,
            catalog,
            kept,
            receive,
        };
        let thread = std::thread::Builder::new()
            .name("background".into())
            .spawn(move || worker.run());
        let thread = thread.map_err(|error| Error::io("cannot start the background thread", &error))?;
        Ok((Self { queue }, thread))
    }

    pub fn send(&self, work: Work) {
        // After the worker stopped nothing is left that would have to be kept.
        let _ = self.queue.send(work);
    }
}

struct Worker {
    store: Store,
    catalog: Arc<Catalog>,
    kept: Arc<Kept>,
    receive: Receiver<Work>,
}

/// What one sync makes durable for one sandbox.
pub(crate) struct Pending {
    pub sandbox: SandboxRecord,
    pub checkpoints: Vec<CheckpointRecord>,
    pub handle: Handle,
}

impl Worker {
    fn run(self) {
        while let Ok(first) = self.receive.recv() {
            // Everything that has gathered shares one sync.
            let mut batch = vec![first];
            batch.extend(self.receive.try_iter());
            if !self.carry_out(batch) {
                return;
            }
        }
    }

    /// `false` ends the worker, after all earlier work was done.
    fn carry_out(&self, batch: Vec<Work>) -> bool {
        let mut pending: HashMap<SandboxId, Pending> = HashMap::new();
        let mut go_on = true;
        let (mut forget, mut squash) = (Vec::new(), Vec::new());
        for work in batch {
            match work {
                Work::Drop(thing) => drop(thing),
                Work::Squash(job) => squash.push(job),
                Work::Stop => go_on = false,
                Work::Forget { sandbox, done } => {
                    pending.remove(&sandbox);
                    forget.push((sandbox, done));
                }
                Work::Durable(new) => match pending.entry(new.sandbox.id.clone()) {
                    Entry::Vacant(entry) => drop(entry.insert(*new)),
                    Entry::Occupied(mut entry) => {
                        let Pending {
                            sandbox, checkpoints, ..
                        } = *new;
                        entry.get_mut().sandbox = sandbox;
                        entry.get_mut().checkpoints.extend(checkpoints);
                    }
                },
            }
        }
        let removed = !forget.is_empty();
        for (sandbox, done) in forget {
            self.kept.remove(&sandbox);
            let _ = done.send(self.catalog.remove(&sandbox));
        }
        self.make_durable(pending);
        if removed && let Err(error) = self.kept.collect(&self.store) {
            tracing::error!(%error, "layers of a removed sandbox could not be removed");
        }
        for job in squash {
            if let Err(error) = job.run() {
                // The chain stays long, which costs time only.
                tracing::warn!(%error, "layers could not be merged");
            }
        }
        go_on
    }

    fn make_durable(&self, pending: HashMap<SandboxId, Pending>) {
        if pending.is_empty() {
            return;
        }
        let needs_sync = pending.values().any(|p| !p.checkpoints.is_empty());
        let synced: Result<()> = if needs_sync {
            self.store.sync().map_err(Error::from)
        } else {
            Ok(())
        };
        for (_, pending) in pending {
            let Pending {
                sandbox,
                mut checkpoints,
                handle,
            } = pending;
            self.measure(&mut checkpoints);
            let result = synced
                .clone()
                .and_then(|()| self.catalog.put(&sandbox, &checkpoints));
            if let Err(error) = &result {
                tracing::error!(sandbox = %sandbox.name, %error, "checkpoints could not be made durable");
            }
            handle.submit(move |sandbox| sandbox.made_durable(&checkpoints, &result));
        }
    }

    /// Notes how much a layer holds. A snapshot shares what it holds, and counting it would read all of it.
    fn measure(&self, checkpoints: &mut [CheckpointRecord]) {
        for node in checkpoints {
            if node.file_bytes.is_none() && matches!(node.frozen.top, Top::Layer(_)) {
                node.file_bytes = self.store.measure(&node.frozen).ok().map(|size| size.bytes);
            }
        }
    }
}
