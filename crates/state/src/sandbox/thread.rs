//! The thread that owns a sandbox, and the handle others reach it by.

use std::sync::Arc;
use std::sync::mpsc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::queue::Queue;
use super::{Live, Sandbox};
use crate::catalog::{CheckpointRecord, SandboxRecord};
use crate::engine::Shared;
use crate::error::{Error, Result};
use crate::id::SandboxId;

/// Without requests for this long, the next checkpoint and rollback are prepared: 2 ms.
const IDLE_AFTER: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 2_000_000,
};

/// Reaches a sandbox from any thread. Cheap to clone; outliving the sandbox is harmless.
#[derive(Clone)]
pub struct Handle {
    id: SandboxId,
    queue: Arc<Queue<Sandbox>>,
}

impl Handle {
    /// Starts the owning thread. `start` makes the live state on it (ptrace belongs to a thread) or leaves the
    /// sandbox stopped; its error ends the thread and is returned.
    pub(crate) fn spawn(
        record: SandboxRecord,
        checkpoints: Vec<CheckpointRecord>,
        shared: Arc<Shared>,
        start: impl FnOnce(&mut SandboxRecord, &Arc<Shared>) -> Result<Option<Live>> + Send + 'static,
    ) -> Result<Self> {
        let queue = Queue::new().map_err(|error| Error::io("cannot make a request queue", &error))?;
        let handle = Self {
            id: record.id.clone(),
            queue: Arc::new(queue),
        };
        let (send, receive) = mpsc::channel();
        let (own, name) = (handle.clone(), format!("sandbox {}", record.name));
        let body = move || {
            let mut record = record;
            match start(&mut record, &shared) {
                Err(error) => drop(send.send(Err(error))),
                Ok(live) => {
                    let sandbox = Sandbox::new(record, checkpoints, live, shared, own.clone());
                    let _ = send.send(Ok(()));
                    drop(send);
                    run(sandbox, &own.queue);
                }
            }
        };
        let spawned = std::thread::Builder::new().name(name).spawn(body);
        spawned.map_err(|error| Error::io("cannot start the sandbox's thread", &error))?;
        let started = receive
            .recv()
            .map_err(|_| Error::internal("the sandbox's thread ended", "it panicked"));
        started.flatten().map(|()| handle)
    }

    pub fn id(&self) -> &SandboxId {
        &self.id
    }

    /// Queues work for the owning thread. When the sandbox is gone the job is dropped unrun.
    pub fn submit(&self, job: impl FnOnce(&mut Sandbox) + Send + 'static) {
        self.queue.push(Box::new(job));
    }

    /// Like [`Handle::submit`], waiting for the result.
    pub fn call<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Sandbox) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (send, receive) = mpsc::channel();
        self.submit(move |sandbox| drop(send.send(job(sandbox))));
        receive
            .recv()
            .map_err(|_| Error::conflict("the sandbox was removed meanwhile"))?
    }

    /// Ends the thread after the job at hand; the sandbox's cell goes with it.
    pub(crate) fn close(&self) {
        self.queue.close();
    }
}

fn run(mut sandbox: Sandbox, queue: &Queue<Sandbox>) {
    loop {
        while let Some(job) = queue.pop() {
            job(&mut sandbox);
            sandbox.take_events();
        }
        if queue.is_closed() {
            return;
        }
        // Whoever calls again at once is not kept waiting by what is only prepared.
        if !wait(&sandbox, queue, Some(IDLE_AFTER)) {
            sandbox.prepare();
            wait(&sandbox, queue, None);
        }
        sandbox.take_events();
    }
}

/// Sleeps until there is a job or the cell has news (`true`), or for `at_most`.
fn wait(sandbox: &Sandbox, queue: &Queue<Sandbox>, at_most: Option<Timespec>) -> bool {
    let wake = queue.wake_fd();
    let mut fds = vec![PollFd::new(&wake, PollFlags::IN)];
    let events = sandbox.live.as_ref().map(Live::event_fd);
    if let Some(fd) = &events {
        fds.push(PollFd::new(fd, PollFlags::IN));
    }
    match poll(&mut fds, at_most.as_ref()) {
        Ok(ready) => ready > 0,
        Err(Errno::INTR) => true,
        Err(error) => {
            tracing::error!(%error, "poll failed");
            true
        }
    }
}
