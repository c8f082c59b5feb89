//! Namespaces: made, entered, and seen to be apart.

use std::path::Path;

use deltabox_sys::clone::{ForkOptions, unshare_namespaces};
use rustix::mount::MountFlags;
use rustix::thread::UnshareFlags;

use super::{Doing, Step, all, ensure, failed, private_mounts};
use crate::child::in_child;
use crate::report::Outcome;

/// Mounts a tmpfs nobody else sees.
pub(crate) fn root(work: &Path) -> Outcome {
    all(private_mounts().and_then(|()| {
        rustix::mount::mount("none", work, "tmpfs", MountFlags::empty(), None).doing("mount a tmpfs")?;
        Ok(format!("uid {} may mount", rustix::process::geteuid().as_raw()))
    }))
}

/// Unshares one namespace and sees its identity change.
fn unshared(flags: UnshareFlags, link: &str) -> Step<String> {
    let identity = || std::fs::read_link(format!("/proc/self/ns/{link}")).doing("read /proc/self/ns");
    let before = identity()?;
    unshare_namespaces(flags).doing("unshare")?;
    let after = identity()?;
    ensure(
        before != after,
        "unshare succeeded, but the namespace is the same",
    )?;
    Ok(format!("{} became {}", before.display(), after.display()))
}

/// Maps root of a new namespace to an unprivileged user and back.
pub(crate) fn user(_: &Path) -> Outcome {
    all(unshared(UnshareFlags::NEWUSER, "user").and_then(|_| {
        let id = rustix::process::geteuid().as_raw();
        ensure(id != 0, "an unmapped user still is root")
            .map(|()| "made, and root outside is nobody inside".into())
    }))
}

/// A mount made inside stays inside.
pub(crate) fn mount(work: &Path) -> Outcome {
    let count = || {
        std::fs::read_to_string("/proc/self/mountinfo")
            .doing("read mountinfo")
            .map(|t| t.lines().count())
    };
    let steps = || {
        let before = count()?;
        let options = ForkOptions {
            namespaces: u64::from(UnshareFlags::NEWNS.bits()),
            ..ForkOptions::default()
        };
        let child = in_child(&options, || {
            private_mounts().map_err(|e| failed(&e))?;
            Ok(rustix::mount::mount(
                "none",
                work,
                "tmpfs",
                MountFlags::empty(),
                None,
            )?)
        });
        child.doing("mount in a child's namespace")?;
        ensure(count()? == before, "a mount made inside is seen outside")?;
        Ok("a mount made inside is not seen outside".into())
    };
    all(steps())
}

/// The first process in it is number 1.
pub(crate) fn pid(_: &Path) -> Outcome {
    let options = ForkOptions {
        namespaces: u64::from(UnshareFlags::NEWPID.bits()),
        ..ForkOptions::default()
    };
    let child = in_child(&options, || {
        if rustix::process::getpid().is_init() {
            Ok(())
        } else {
            Err(failed("not number 1"))
        }
    });
    all(child
        .doing("make a child in a new namespace")
        .map(|()| "a child became process 1".into()))
}

/// It starts with a loopback device that is down, and nothing else.
pub(crate) fn net(_: &Path) -> Outcome {
    all(unshared(UnshareFlags::NEWNET, "net").and_then(|_| {
        let text = std::fs::read_to_string("/proc/net/dev")
            .or_else(|_| std::fs::read_to_string("/proc/self/net/dev"));
        let devices: Vec<String> = text
            .doing("read the devices")?
            .lines()
            .filter_map(|line| line.split_once(':').map(|(name, _)| name.trim().to_owned()))
            .collect();
        ensure(devices.iter().any(|d| d == "lo"), "there is no loopback device")?;
        Ok(format!("made, with its own {}", devices.join(", ")))
    }))
}

pub(crate) fn ipc(_: &Path) -> Outcome {
    all(unshared(UnshareFlags::NEWIPC, "ipc"))
}

/// A host name set inside stays inside.
pub(crate) fn uts(_: &Path) -> Outcome {
    let name = || rustix::system::uname().nodename().to_string_lossy().into_owned();
    let before = name();
    let options = ForkOptions {
        namespaces: u64::from(UnshareFlags::NEWUTS.bits()),
        ..ForkOptions::default()
    };
    let child = in_child(&options, || Ok(rustix::system::sethostname(b"deltabox-doctor")?));
    all(child.doing("set a host name inside").and_then(|()| {
        ensure(name() == before, "a host name set inside is seen outside")?;
        Ok("a host name set inside is not seen outside".into())
    }))
}

pub(crate) fn cgroup(_: &Path) -> Outcome {
    all(unshared(UnshareFlags::NEWCGROUP, "cgroup"))
}

/// Time namespaces take children only: the link of those to come changes.
pub(crate) fn time(_: &Path) -> Outcome {
    all(
        unshared(UnshareFlags::NEWTIME, "time_for_children").and_then(|detail| {
            std::fs::write("/proc/self/timens_offsets", "monotonic 1000 0\n").doing("set an offset")?;
            let before = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic).tv_sec;
            in_child(&ForkOptions::default(), || {
                let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic).tv_sec;
                if now >= before + 999 {
                    Ok(())
                } else {
                    Err(failed("the clock did not move"))
                }
            })
            .doing("see another clock in a child")?;
            Ok(detail)
        }),
    )
}
