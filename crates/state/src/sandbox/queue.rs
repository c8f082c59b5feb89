//! The request queue of one sandbox: closures for the thread that owns it, with a descriptor to poll.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Mutex;

use rustix::event::{EventfdFlags, eventfd};

/// Work for the owning thread.
pub type Job<S> = Box<dyn FnOnce(&mut S) + Send>;

/// First in, first out; closed once the owner ends. A job that cannot be run any more is dropped, by which its
/// caller learns of it.
pub struct Queue<S> {
    jobs: Mutex<State<S>>,
    wake: OwnedFd,
}

struct State<S> {
    jobs: VecDeque<Job<S>>,
    closed: bool,
}

impl<S> Queue<S> {
    pub fn new() -> std::io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self {
            jobs: Mutex::new(State {
                jobs: VecDeque::new(),
                closed: false,
            }),
            wake,
        })
    }

    /// Appends a job; dropped at once when the queue is closed.
    pub fn push(&self, job: Job<S>) {
        let mut state = self.jobs.lock().expect("no job runs under the lock");
        if !state.closed {
            state.jobs.push_back(job);
            // Only a counter at its limit of 2^64 - 2 could fail, and then the owner is awake anyway.
            let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        }
    }

    /// The next job. `None` means that [`Queue::wake_fd`] has to be waited for.
    pub fn pop(&self) -> Option<Job<S>> {
        let mut state = self.jobs.lock().expect("no job runs under the lock");
        let job = state.jobs.pop_front();
        if job.is_none() {
            let _ = rustix::io::read(&self.wake, &mut [0u8; 8]);
        }
        job
    }

    /// Refuses further jobs and drops the waiting ones.
    pub fn close(&self) {
        let jobs = {
            let mut state = self.jobs.lock().expect("no job runs under the lock");
            state.closed = true;
            let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
            std::mem::take(&mut state.jobs)
        };
        drop(jobs);
    }

    /// Whether [`Queue::close`] was called.
    pub fn is_closed(&self) -> bool {
        self.jobs.lock().expect("no job runs under the lock").closed
    }

    /// Readable while jobs may be waiting.
    pub fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, poll};

    fn readable<S>(queue: &Queue<S>) -> bool {
        let wake = queue.wake_fd();
        let mut fds = [PollFd::new(&wake, PollFlags::IN)];
        poll(
            &mut fds,
            Some(&rustix::time::Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            }),
        )
        .unwrap()
            == 1
    }

    #[test]
    fn jobs_come_out_in_order_and_the_descriptor_tells_of_them() {
        let queue: Queue<Vec<u32>> = Queue::new().unwrap();
        assert!(!readable(&queue));
        queue.push(Box::new(|s| s.push(1)));
        queue.push(Box::new(|s| s.push(2)));
        assert!(readable(&queue));
        let mut seen = Vec::new();
        while let Some(job) = queue.pop() {
            job(&mut seen);
        }
        assert_eq!(seen, [1, 2]);
        assert!(!readable(&queue));
    }

    #[test]
    fn a_closed_queue_drops_jobs() {
        let queue: Queue<()> = Queue::new().unwrap();
        let (send, receive) = std::sync::mpsc::channel::<()>();
        let early = send.clone();
        queue.push(Box::new(move |()| drop(early)));
        queue.close();
        queue.push(Box::new(move |()| drop(send)));
        assert!(receive.recv().is_err(), "both senders are gone");
    }
}
