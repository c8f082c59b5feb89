//! What a description leads to, told from its link, mode and mount. A kind that is not known is an answer too.

use super::live::{Live, LiveDescription};

/// The kinds, as far as they can be told apart without asking the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Path,
    Regular,
    Directory,
    Pipe,
    Fifo,
    /// One of the character devices without a state of their own.
    CharDevice,
    /// `/dev/tty`: the controlling terminal of whoever opened it.
    Tty,
    PtyMaster,
    PtySlave,
    Eventfd,
    Epoll,
    Timerfd,
    Signalfd,
    Inotify,
    Pidfd,
    Memfd,
    /// A POSIX message queue.
    Mqueue,
    Socket,
    /// Refused by name.
    Other,
}

/// Major numbers of the slaves of pseudo terminals (Documentation/admin-guide/devices.txt).
const PTY_SLAVES: std::ops::RangeInclusive<u32> = 136..=143;

pub(super) fn of(live: &Live, description: &LiveDescription) -> Class {
    if description.flags & libc::O_PATH as u32 != 0 {
        return Class::Path;
    }
    let link = description.link.as_slice();
    if let Some(name) = link.strip_prefix(b"anon_inode:") {
        return anonymous(name);
    }
    match description.mode & libc::S_IFMT {
        libc::S_IFREG if description.is_queue => Class::Mqueue,
        libc::S_IFREG if link.starts_with(b"/memfd:") && is_internal(live, description) => Class::Memfd,
        libc::S_IFREG if link.starts_with(b"/") && link != b"/secretmem" => Class::Regular,
        libc::S_IFDIR => Class::Directory,
        libc::S_IFIFO if link.starts_with(b"pipe:[") => Class::Pipe,
        libc::S_IFIFO => Class::Fifo,
        libc::S_IFSOCK if link.starts_with(b"socket:[") => Class::Socket,
        libc::S_IFCHR => match description.device {
            (1, 3 | 5 | 7 | 8 | 9) => Class::CharDevice,
            (5, 0) => Class::Tty,
            (5, 2) => Class::PtyMaster,
            (major, _) if PTY_SLAVES.contains(&major) => Class::PtySlave,
            _ => Class::Other,
        },
        _ => Class::Other,
    }
}

fn anonymous(name: &[u8]) -> Class {
    match name {
        b"[eventfd]" => Class::Eventfd,
        b"[eventpoll]" => Class::Epoll,
        b"[timerfd]" => Class::Timerfd,
        b"[signalfd]" => Class::Signalfd,
        b"inotify" | b"[inotify]" => Class::Inotify,
        b"[pidfd]" => Class::Pidfd,
        _ => Class::Other,
    }
}

/// memfds lie on a mount of the kernel's own, which no program can put a file on.
fn is_internal(live: &Live, description: &LiveDescription) -> bool {
    description.links == 0 && description.mount != live.root_mount
}

/// Why a description of class `Other` is refused: what it is, and what to do.
pub(super) fn why_refused(description: &LiveDescription) -> (String, &'static str, &'static str) {
    let link = String::from_utf8_lossy(&description.link).into_owned();
    let has = |part: &str| link.contains(part);
    let (why, remedy) = if has("io_uring") {
        (
            "requests in flight inside the kernel cannot be read out",
            "run the program without io_uring",
        )
    } else if has("userfaultfd") {
        (
            "page faults would wait for an answer nobody gives",
            "run the program without userfaultfd",
        )
    } else if has("fanotify") {
        (
            "permission events wait for an answer inside the kernel",
            "watch with inotify instead",
        )
    } else if has("bpf") {
        (
            "programs loaded into the kernel are not part of a sandbox",
            "close it before the checkpoint",
        )
    } else if has("perf_event") {
        (
            "hardware counters cannot be set back",
            "close it before the checkpoint",
        )
    } else if has("secretmem") {
        (
            "secret memory cannot be read by anyone but its owner",
            "use ordinary memory or a memfd",
        )
    } else if description.mode & libc::S_IFMT == libc::S_IFBLK
        || description.mode & libc::S_IFMT == libc::S_IFCHR
    {
        (
            "a device has a state that only the device knows",
            "close it before the checkpoint",
        )
    } else {
        (
            "this kind of descriptor is not known",
            "close it before the checkpoint",
        )
    };
    (link, why, remedy)
}
