//! A thread of ours that stands inside the sandbox for a moment: in its network namespace, and with its root as
//! root, so that a unix socket can be bound to a path exactly as the program spelled it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::live::Live;

/// Runs `work` on a thread in the network namespace of the sandbox's processes, and with `root` as its root.
///
/// # Errors
/// When the thread cannot go there, or what `work` fails with.
pub(super) fn inside<R: Send>(
    live: &Live,
    root: Option<BorrowedFd<'_>>,
    work: impl FnOnce() -> io::Result<R> + Send,
) -> io::Result<R> {
    let network = match (&live.network, live.processes.first()) {
        (Some(network), _) => Some(std::fs::File::from(network.try_clone()?)),
        (None, Some(process)) => {
            let path = format!("/proc/{}/ns/net", process.pid.as_raw_nonzero());
            Some(std::fs::File::open(path)?)
        }
        (None, None) => None,
    };
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            if let Some(network) = &network
                && network.metadata()?.ino() != std::fs::metadata("/proc/thread-self/ns/net")?.ino()
            {
                move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
            }
            if let Some(root) = root {
                deltabox_sys::fd::unshare_directories()?;
                rustix::process::fchdir(root)?;
                rustix::process::chroot(".")?;
            }
            work()
        });
        thread.join().map_err(|_| io::Error::other("a thread panicked"))?
    })
}
