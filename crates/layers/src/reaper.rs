//! Work nobody should wait for: unmounting, removing trees, deleting volumes. One thread per store, in order.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use deltabox_sys::btrfs;

pub(crate) enum Job {
    /// Give up a descriptor (the last one of a mount unmounts it, which may take long).
    Close(Arc<OwnedFd>),
    /// Remove a directory tree.
    RemoveTree(PathBuf),
    /// Remove a volume: a subvolume with all its content, or a plain directory tree.
    RemoveVolume(PathBuf),
    /// Ask the filesystem to hand out again what was freed, now and not when it gets to it. Costs a flush.
    Reclaim(PathBuf),
    /// Answer when everything before this is done.
    Barrier(Sender<()>),
}

#[derive(Debug)]
pub(crate) struct Reaper {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Reaper {
    pub(crate) fn start() -> io::Result<Self> {
        let (jobs, queue) = channel();
        let thread = std::thread::Builder::new()
            .name("layers-reaper".into())
            .spawn(move || {
                if let Err(error) = deltabox_sys::attributes::step_back() {
                    tracing::warn!(%error, "removing rubbish may slow down checkpoints");
                }
                for job in queue {
                    run(job);
                }
            })?;
        Ok(Self {
            jobs: Some(jobs),
            thread: Some(thread),
        })
    }

    pub(crate) fn send(&self, job: Job) {
        if let Some(jobs) = &self.jobs {
            // The thread ends only when the sender is dropped, so it is there to receive.
            let _ = jobs.send(job);
        }
    }

    pub(crate) fn settle(&self) {
        let (done, wait) = channel();
        self.send(Job::Barrier(done));
        let _ = wait.recv();
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(job: Job) {
    match job {
        Job::Close(fd) => drop(fd),
        Job::RemoveTree(path) => report(&path, fs::remove_dir_all(&path)),
        Job::RemoveVolume(path) => report(&path, remove_volume(&path)),
        Job::Reclaim(volumes) => reclaim(&volumes),
        Job::Barrier(done) => {
            let _ = done.send(());
        }
    }
}

/// A read-only snapshot refuses `unlink`, so a subvolume has to go as a whole.
fn remove_volume(path: &Path) -> io::Result<()> {
    if let (Some(parent), Some(name)) = (path.parent(), path.file_name())
        && btrfs::delete_subvolume(File::open(parent)?.as_fd(), name).is_ok()
    {
        return Ok(());
    }
    fs::remove_dir_all(path)
}

fn report(path: &Path, result: io::Result<()>) {
    if let Err(error) = result
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "rubbish in the store could not be removed");
    }
}

fn reclaim(volumes: &Path) {
    // Not on btrfs there is nothing to ask for.
    if let Ok(dir) = File::open(volumes) {
        let _ = btrfs::sync_and_reclaim(dir.as_fd());
    }
}
