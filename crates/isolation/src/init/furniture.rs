//! /proc, /sys and /dev of a cell: mounted once, before any root is there, then moved from root to root.

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, open, openat};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change, mount_remount};

use crate::error::{Context, Failure};

/// Files that show the machine: hidden behind /dev/null.
const MASKED_FILES: [&str; 9] = [
    "proc/kcore",
    "proc/keys",
    "proc/key-users",
    "proc/kmsg",
    "proc/latency_stats",
    "proc/sched_debug",
    "proc/sysrq-trigger",
    "proc/timer_list",
    "proc/timer_stats",
];

/// Directories that show the machine: hidden behind an empty one.
const MASKED_DIRS: [&str; 7] = [
    "proc/acpi",
    "proc/asound",
    "proc/scsi",
    "sys/firmware",
    "sys/kernel/debug",
    "sys/fs/cgroup",
    "sys/devices/virtual/powercap",
];

/// Settings that nobody inside may change, whatever their permissions say.
const READ_ONLY: [&str; 4] = ["proc/sys", "proc/bus", "proc/fs", "proc/irq"];

/// Where the spawner's tree has room for the mounts.
const STAGE: &str = "/cell";

/// The mounts that every root gets, and handles into them.
pub(super) struct Furniture {
    /// Name below the root, and the mount.
    pub(super) mounts: Vec<(&'static str, OwnedFd)>,
    /// The cell's procfs.
    pub(super) proc: OwnedFd,
    /// The cell's terminals.
    pub(super) pts: OwnedFd,
    /// `ns_last_pid`, opened before it became read-only.
    pub(super) last_pid: OwnedFd,
}

impl Furniture {
    pub(super) fn make() -> Result<Self, Failure> {
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
            .inside("make mounts private")?;
        let plain = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        make("proc", "cell/proc", plain, c"")?;
        make("sysfs", "cell/sys", plain | MountFlags::RDONLY, c"")?;
        bind("/dev", "cell/dev")?;
        mount_remount(
            "/cell/dev",
            MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NOEXEC,
            c"",
        )
        .inside("make /dev read-only")?;
        // Group 5 is tty wherever there is such a group.
        make(
            "devpts",
            "cell/dev/pts",
            MountFlags::NOSUID | MountFlags::NOEXEC,
            c"newinstance,ptmxmode=0666,mode=0620,gid=5",
        )?;
        make("mqueue", "cell/dev/mqueue", plain, c"")?;
        let proc = directory("cell/proc")?;
        let last_pid = openat(
            &proc,
            "sys/kernel/ns_last_pid",
            OFlags::WRONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .inside("open ns_last_pid")?;
        // Besides the filter, so that nothing inside can make a user namespace whatever its filter.
        crate::files::write(&proc, "sys/user/max_user_namespaces", "0")
            .inside("forbid nested user namespaces")?;
        hide()?;
        Ok(Self {
            mounts: vec![
                ("proc", directory("cell/proc")?),
                ("sys", directory("cell/sys")?),
                ("dev", directory("cell/dev")?),
            ],
            pts: directory("cell/dev/pts")?,
            proc,
            last_pid,
        })
    }
}

fn hide() -> Result<(), Failure> {
    for path in MASKED_FILES {
        skip_absent(mount_bind("/dev/null", format!("{STAGE}/{path}"))).inside(format!("mask /{path}"))?;
    }
    for path in MASKED_DIRS {
        skip_absent(mount_bind("/empty", format!("{STAGE}/{path}"))).inside(format!("mask /{path}"))?;
    }
    for path in READ_ONLY {
        let full = format!("{STAGE}/{path}");
        match mount_bind(&full, &full) {
            Ok(()) => {}
            Err(Errno::NOENT) => continue,
            Err(error) => return Err(error).inside(format!("make /{path} read-only")),
        }
        let flags = MountFlags::BIND
            | MountFlags::RDONLY
            | MountFlags::NOSUID
            | MountFlags::NODEV
            | MountFlags::NOEXEC;
        mount_remount(&full, flags, c"").inside(format!("make /{path} read-only"))?;
    }
    Ok(())
}

/// What this kernel does not have need not be hidden.
fn skip_absent(result: Result<(), Errno>) -> Result<(), Errno> {
    match result {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

fn make(kind: &str, path: &str, flags: MountFlags, options: &std::ffi::CStr) -> Result<(), Failure> {
    mount(kind, format!("/{path}"), kind, flags, Some(options)).inside(format!("mount {kind}"))
}

fn bind(from: &str, path: &str) -> Result<(), Failure> {
    mount_bind(from, format!("/{path}")).inside(format!("bind {from}"))
}

fn directory(path: &str) -> Result<OwnedFd, Failure> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    open(format!("/{path}"), flags, Mode::empty()).inside(format!("open /{path}"))
}
