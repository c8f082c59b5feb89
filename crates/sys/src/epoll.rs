//! Asking an epoll instance of somebody else which events it has, and having it report them again.
//!
//! A target goes by its file *and* the number it was added under, so both have to be right where it is changed. That is
//! done by a thread with a table of descriptors of its own.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// A target of an instance.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// The file.
    pub file: BorrowedFd<'a>,
    /// The number it was added under.
    pub number: i32,
    /// Events as given to `epoll_ctl(2)`.
    pub events: u32,
    /// What the instance reports it by.
    pub data: u64,
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Takes all events out of `instance`, which has at most these targets, and has those reported anew that `again` names,
/// of the targets that were reported. Targets are named by their places. Nothing is taken if anything stands in the way.
///
/// # Errors
/// Those of dup(2), epoll_wait(2) and epoll_ctl(2).
pub fn take_events(
    instance: BorrowedFd<'_>,
    targets: &[Target<'_>],
    again: impl FnOnce(&[usize]) -> Vec<usize> + Send,
) -> io::Result<()> {
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| Table::new(instance, targets)?.take(targets, again));
        worker
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The calling thread's own table, which goes with the thread.
struct Table {
    instance: i32,
    /// Duplicates of the files, above all numbers in question.
    files: Vec<i32>,
}

impl Table {
    fn new(instance: BorrowedFd<'_>, targets: &[Target<'_>]) -> io::Result<Table> {
        // SAFETY: takes plain flags; from here on this thread's table is a copy, which nobody else uses.
        check(unsafe { libc::unshare(libc::CLONE_FILES) })?;
        let above = targets.iter().map(|target| target.number + 1).max().unwrap_or(0);
        let lift = |file: BorrowedFd<'_>| {
            // SAFETY: a duplicate at a free number replaces nothing.
            check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_DUPFD_CLOEXEC, above) })
        };
        let table = Table {
            instance: lift(instance)?,
            files: targets
                .iter()
                .map(|target| lift(target.file))
                .collect::<io::Result<_>>()?,
        };
        for (place, target) in targets.iter().enumerate() {
            table.put(place, target)?;
        }
        Ok(table)
    }

    /// Puts a file where its target's number leads to it.
    fn put(&self, place: usize, target: &Target<'_>) -> io::Result<()> {
        // SAFETY: whatever is replaced is this thread's duplicate of something that lives on in the shared table.
        check(unsafe { libc::dup3(self.files[place], target.number, libc::O_CLOEXEC) }).map(drop)
    }

    fn take(self, targets: &[Target<'_>], again: impl FnOnce(&[usize]) -> Vec<usize>) -> io::Result<()> {
        let mut events = vec![libc::epoll_event { events: 0, u64: 0 }; targets.len()];
        let room = i32::try_from(events.len()).unwrap_or(i32::MAX);
        // SAFETY: `events` has room for as many, and lives across the call.
        let count = check(unsafe { libc::epoll_wait(self.instance, events.as_mut_ptr(), room, 0) })?;
        let reported: Vec<u64> = events[..count as usize].iter().map(|event| event.u64).collect();
        // Who uses one value for several targets is told of all of them.
        let places: Vec<usize> = (0..targets.len())
            .filter(|&place| reported.contains(&targets[place].data))
            .collect();
        for place in again(&places) {
            self.renew(place, &targets[place])?;
        }
        Ok(())
    }

    /// Has a target looked at again, and reported if there is something to report.
    fn renew(&self, place: usize, target: &Target<'_>) -> io::Result<()> {
        self.put(place, target)?;
        let (events, data) = (target.events, target.data);
        let control = |operation: i32| {
            let mut event = libc::epoll_event { events, u64: data };
            // SAFETY: the kernel only reads the event, which lives across the call.
            check(unsafe { libc::epoll_ctl(self.instance, operation, target.number, &raw mut event) })
        };
        if events & libc::EPOLLEXCLUSIVE as u32 == 0 {
            return control(libc::EPOLL_CTL_MOD).map(drop);
        }
        // Those cannot be changed.
        control(libc::EPOLL_CTL_DEL)?;
        control(libc::EPOLL_CTL_ADD).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::event::Timespec;
    use rustix::event::epoll::{CreateFlags, EventData, EventFlags, add, create, wait};
    use rustix::pipe::pipe;

    use super::*;

    #[test]
    fn an_edge_is_reported_again_only_when_asked_for() {
        let instance = create(CreateFlags::CLOEXEC).unwrap();
        let pipes = [pipe().unwrap(), pipe().unwrap()];
        let flags = EventFlags::IN | EventFlags::ET;
        for (place, (end, other)) in pipes.iter().enumerate() {
            add(&instance, end, EventData::new_u64(place as u64), flags).unwrap();
            rustix::io::write(other, b"x").unwrap();
        }
        let targets: Vec<Target<'_>> = pipes
            .iter()
            .enumerate()
            .map(|(place, (end, _))| Target {
                file: end.as_fd(),
                number: end.as_raw_fd(),
                events: flags.bits(),
                data: place as u64,
            })
            .collect();
        take_events(instance.as_fd(), &targets, |reported| {
            assert_eq!(reported, [0, 1]);
            vec![1]
        })
        .unwrap();
        let mut events = Vec::with_capacity(4);
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        wait(&instance, rustix::buffer::spare_capacity(&mut events), Some(&now)).unwrap();
        let found: Vec<u64> = events.iter().map(|event| event.data.u64()).collect();
        assert_eq!(found, [1]);
    }
}
