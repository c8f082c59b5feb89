//! Merging layers, on a thread of its own: durable work waits for the disk, and meanwhile chains would grow.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;

use deltabox_layers::SquashJob;

use crate::error::{Error, Result};

/// A chain that has become longer than this while nothing merged it is merged by whoever makes it longer: from here on
/// depth is felt more than the merging.
const LONGEST_CHAIN: usize = 128;

/// The queue to the thread.
pub(crate) struct Squasher {
    queue: Arc<Queue>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    news: Condvar,
}

#[derive(Default)]
struct State {
    /// Of each volume the newest job: it covers what earlier ones would have merged.
    waiting: Vec<SquashJob>,
    stopped: bool,
}

impl Squasher {
    pub fn start() -> Result<Self> {
        let queue = Arc::<Queue>::default();
        let own = queue.clone();
        let thread = std::thread::Builder::new()
            .name("squash".into())
            .spawn(move || own.work());
        let thread =
            thread.map_err(|error| Error::io("cannot start the thread that merges layers", &error))?;
        Ok(Self {
            queue,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Has layers merged soon, or, where that lags too far behind, merges them now.
    pub fn squash(&self, job: SquashJob) {
        if job.depth() > LONGEST_CHAIN {
            return run(&job);
        }
        let mut state = self.queue.lock();
        match state
            .waiting
            .iter_mut()
            .find(|other| other.is_of_same_volume(&job))
        {
            Some(other) => *other = job,
            None => state.waiting.push(job),
        }
        self.queue.news.notify_one();
    }

    /// Ends the thread after the merge at hand.
    pub fn stop(&self) {
        self.queue.lock().stopped = true;
        self.queue.news.notify_one();
        if let Some(thread) = self.thread.lock().expect("not poisoned").take() {
            let _ = thread.join();
        }
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no merge runs under the lock")
    }

    fn work(&self) {
        step_back();
        while let Some(job) = self.next() {
            run(&job);
        }
    }

    /// Waits for a job; `None` ends the thread.
    fn next(&self) -> Option<SquashJob> {
        let idle = |state: &mut State| state.waiting.is_empty() && !state.stopped;
        let waited = self.news.wait_while(self.lock(), idle);
        let mut state = waited.expect("no merge runs under the lock");
        (!state.stopped).then(|| state.waiting.remove(0))
    }
}

fn run(job: &SquashJob) {
    if let Err(error) = job.run() {
        // The chain stays long, which costs time only.
        tracing::warn!(%error, "layers could not be merged");
    }
}

/// Lets everybody else go first: nobody waits for what the calling thread does as they wait for a checkpoint.
pub(crate) fn step_back() {
    if let Err(error) = deltabox_sys::attributes::step_back() {
        tracing::warn!(%error, "background work may slow down checkpoints");
    }
}
