//! Inside the spawner process.
//!
//! Its mount namespace holds a small read-only tmpfs with a whole procfs and sysfs (without which a user namespace
//! may not mount its own: the kernel wants a fully visible instance, see mount_too_revealing in fs/namespace.c) and a
//! directory of device nodes. It is copied for every cell, so it is kept nearly empty.

use std::os::fd::{AsFd, OwnedFd};

use deltabox_sys::clone::{
    ForkOptions, Forked, SingleThreaded, child_signal_fd, close_all_but, exit_now, fork, reset_signals,
};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{CWD, FileType, Mode, OFlags, chmodat, makedev, mkdirat, mknodat, open, symlinkat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount_change, mount_remount,
    move_mount, unmount,
};
use rustix::process::{DumpableBehavior, WaitOptions, fchdir, pivot_root, set_dumpable_behavior, wait};

use crate::error::{Context, Failure};
use crate::init;
use crate::protocol::{SpawnerReply, SpawnerRequest};
use crate::seccomp::{Filter, Profile};
use crate::wire::Channel;

/// Device nodes that programs expect: name, major, minor (Documentation/admin-guide/devices.txt).
const DEVICES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

/// Symbolic links in /dev. Shared memory leads into the sandbox's layers, so that checkpoints carry it.
const LINKS: [(&str, &str); 7] = [
    ("ptmx", "pts/ptmx"),
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("core", "/proc/kcore"),
    ("shm", "/run/shm"),
];

/// The spawner's program. Standard input is the socket to the owner. Returns the exit status, when the owner is gone
/// or the set-up failed. The process must have a single thread.
pub fn main() -> i32 {
    let Ok(socket) = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3) else {
        return 2;
    };
    let channel = Channel::from(socket);
    if close_inherited(&channel).is_err() {
        return 2;
    }
    match set_up() {
        Ok(state) => {
            if channel.send(&SpawnerReply::Ready, &[]).is_err() {
                return 0;
            }
            serve(state, channel)
        }
        Err(failure) => {
            // If the owner is gone there is nobody to tell.
            let _ = channel.send(&SpawnerReply::Failed(failure), &[]);
            1
        }
    }
}

/// What the owner's starter left open would keep pipes of others open for as long as this process lives. Nothing
/// but the standard descriptors and the socket is in use yet.
fn close_inherited(channel: &Channel) -> std::io::Result<()> {
    let proof = SingleThreaded::prove()?;
    close_all_but(&proof, 3, &[channel.as_fd()])
}

struct State {
    proof: SingleThreaded,
    children: OwnedFd,
    filter: Filter,
}

fn set_up() -> Result<State, Failure> {
    let null = open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).inside("open /dev/null")?;
    rustix::stdio::dup2_stdin(&null).inside("detach from the standard input")?;
    let proof = SingleThreaded::prove().inside("start the spawner with a single thread")?;
    reset_signals().inside("reset signals")?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).inside("become undumpable")?;
    let filter = Profile::shipped()
        .and_then(|profile| profile.compile())
        .map_err(|error| Failure {
            what: error.to_string(),
            errno: libc::EINVAL,
        })?;
    build_scaffold()?;
    let children = child_signal_fd().inside("watch children")?;
    Ok(State {
        proof,
        children,
        filter,
    })
}

/// Makes the mount namespace that cells are copies of, and makes it this process's.
fn build_scaffold() -> Result<(), Failure> {
    deltabox_sys::clone::unshare_namespaces(rustix::thread::UnshareFlags::NEWNS)
        .inside("make a mount namespace")?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .inside("make mounts private")?;
    let root = tmpfs("64k")?;
    for dir in [
        "proc",
        "sys",
        "dev",
        "cell",
        "cell/proc",
        "cell/sys",
        "cell/dev",
        "empty",
    ] {
        mkdirat(&root, dir, Mode::from_raw_mode(0o755)).inside(format!("make /{dir}"))?;
    }
    attach(&root, CWD, "/")?;
    // What is looked up from the descriptor on is in the new tree; the old root is still there, for mounting.
    for (kind, at) in [("proc", "proc"), ("sysfs", "sys")] {
        let mount = filesystem(kind, &[], MountAttrFlags::MOUNT_ATTR_NOSUID)?;
        attach(&mount, &root, at)?;
    }
    let devices = tmpfs("64k")?;
    fill_devices(&devices)?;
    attach(&devices, &root, "dev")?;
    fchdir(&root).inside("enter the new root")?;
    pivot_root(".", ".").inside("switch to the new root")?;
    unmount(".", UnmountFlags::DETACH).inside("let go of the machine's root")?;
    for shared in ["/dev", "/"] {
        mount_remount(shared, MountFlags::RDONLY | MountFlags::NOSUID, "")
            .inside("make the tree read-only")?;
    }
    Ok(())
}

fn fill_devices(devices: &OwnedFd) -> Result<(), Failure> {
    let everyone = Mode::from_raw_mode(0o666);
    for (name, major, minor) in DEVICES {
        mknodat(
            devices,
            name,
            FileType::CharacterDevice,
            everyone,
            makedev(major, minor),
        )
        .inside(format!("make the device {name}"))?;
        chmodat(devices, name, everyone, rustix::fs::AtFlags::empty()).inside("open a device to everyone")?;
    }
    for (name, target) in LINKS {
        symlinkat(target, devices, name).inside(format!("link /dev/{name}"))?;
    }
    for dir in ["pts", "mqueue"] {
        mkdirat(devices, dir, Mode::from_raw_mode(0o755)).inside(format!("make /dev/{dir}"))?;
    }
    Ok(())
}

fn tmpfs(size: &str) -> Result<OwnedFd, Failure> {
    filesystem(
        "tmpfs",
        &[("size", size), ("mode", "755")],
        MountAttrFlags::MOUNT_ATTR_NOSUID,
    )
}

fn filesystem(kind: &str, options: &[(&str, &str)], flags: MountAttrFlags) -> Result<OwnedFd, Failure> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).inside(format!("open filesystem {kind}"))?;
    for (key, value) in options {
        fsconfig_set_string(context.as_fd(), *key, *value).inside(format!("set {key} of {kind}"))?;
    }
    fsconfig_create(context.as_fd()).inside(format!("make a {kind} instance"))?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, flags).inside(format!("mount {kind}"))
}

fn attach(mount: &OwnedFd, dir: impl AsFd, path: &str) -> Result<(), Failure> {
    move_mount(mount, "", dir, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .inside(format!("attach /{path}"))
}

fn serve(state: State, channel: Channel) -> i32 {
    loop {
        let mut ready = [
            PollFd::new(&channel, PollFlags::IN),
            PollFd::new(&state.children, PollFlags::IN),
        ];
        match poll(&mut ready, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return 1,
        }
        let (asked, ended) = (!ready[0].revents().is_empty(), !ready[1].revents().is_empty());
        if ended {
            reap(&state.children);
        }
        if !asked {
            continue;
        }
        match channel.receive::<SpawnerRequest>() {
            Ok(Some((
                SpawnerRequest::Cell {
                    uid_base,
                    oom_score_adj,
                },
                fds,
            ))) => {
                let Ok([requests, events, cell, run]) = <[OwnedFd; 4]>::try_from(fds) else {
                    return 1;
                };
                match clone_init(&state, &cell, uid_base) {
                    Ok(None) => {
                        // In init: only what it needs may stay open.
                        drop(channel);
                        drop(cell);
                        let State {
                            proof,
                            children,
                            filter,
                        } = state;
                        drop(children);
                        let status =
                            init::main(proof, requests.into(), events.into(), run, filter, oom_score_adj);
                        exit_now(status);
                    }
                    Ok(Some((pid, pidfd))) => {
                        if channel
                            .send(&SpawnerReply::Cell { pid }, &[pidfd.as_fd()])
                            .is_err()
                        {
                            return 0;
                        }
                    }
                    Err(failure) => {
                        if channel.send(&SpawnerReply::Failed(failure), &[]).is_err() {
                            return 0;
                        }
                    }
                }
            }
            Ok(None) => return 0,
            Err(_) => return 1,
        }
    }
}

/// Clones an init and writes its identity maps. `None` in the child.
fn clone_init(state: &State, cell: &OwnedFd, uid_base: u32) -> Result<Option<(i32, OwnedFd)>, Failure> {
    let namespaces = (libc::CLONE_NEWUSER
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS) as u64;
    let options = ForkOptions {
        namespaces,
        cgroup: Some(cell.as_fd()),
        pids: &[],
    };
    let (pid, pidfd) = match fork(&state.proof, &options).inside("clone an init with all namespaces")? {
        Forked::Child => return Ok(None),
        Forked::Parent { pid, pidfd } => (pid, pidfd),
    };
    let map = format!("0 {uid_base} {}\n", super::UIDS_PER_CELL);
    for file in ["uid_map", "gid_map"] {
        if let Err(error) = std::fs::write(format!("/proc/{pid}/{file}"), &map) {
            // It waits for its first order and never gets one.
            let _ = rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
            return Err(error).inside(format!("write {file}"));
        }
    }
    Ok(Some((pid, pidfd)))
}

/// Collects inits that have ended.
fn reap(children: &OwnedFd) {
    let mut record = [0; 128];
    while rustix::io::read(children, &mut record).is_ok() {}
    while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
}
