//! Control groups: a group of the probe's own in each hierarchy, used and removed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use deltabox_sys::clone::ForkOptions;
use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsmount, fsopen, move_mount,
};

use super::{Doing, Step, all, ensure, private_mounts};
use crate::child::{Child, PATIENCE};
use crate::report::Outcome;

const PREFIX: &str = "deltabox-doctor-";

/// A mounted hierarchy: where, and which v1 controllers (none: v2).
struct Hierarchy {
    path: PathBuf,
    v1: Option<Vec<String>>,
}

fn hierarchies() -> Vec<Hierarchy> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let parse = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let path = PathBuf::from(left.split(' ').nth(4)?);
        let mut right = right.split(' ');
        let v1 = match right.next()? {
            "cgroup2" => None,
            "cgroup" => Some(right.nth(1)?.split(',').map(str::to_owned).collect()),
            _ => return None,
        };
        Some(Hierarchy { path, v1 })
    };
    text.lines().filter_map(parse).collect()
}

/// Finds the v2 hierarchy, or mounts it in a private namespace.
fn v2(work: &Path) -> Step<(PathBuf, &'static str)> {
    if let Some(found) = hierarchies().into_iter().find(|h| h.v1.is_none()) {
        return Ok((found.path, "mounted"));
    }
    private_mounts()?;
    let at = work.join("cgroup2");
    fs::create_dir(&at).doing("create a directory")?;
    let context = fsopen("cgroup2", FsOpenFlags::FSOPEN_CLOEXEC).doing("open cgroup2")?;
    fsconfig_create(&context).doing("create a cgroup2 mount")?;
    let mount =
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).doing("mount cgroup2")?;
    move_mount(&mount, "", CWD, &at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).doing("attach cgroup2")?;
    Ok((at, "not mounted, but mountable"))
}

/// A group that is removed when dropped.
struct Group {
    path: PathBuf,
}

impl Group {
    fn new(hierarchy: &Path) -> Step<Self> {
        remove_stale(hierarchy);
        let path = hierarchy.join(format!("{PREFIX}{}", std::process::id()));
        fs::create_dir(&path).doing(&format!("create a group in {}", hierarchy.display()))?;
        Ok(Group { path })
    }

    fn write(&self, file: &str, text: &str) -> io::Result<()> {
        fs::write(self.path.join(file), text)
    }

    fn read(&self, file: &str) -> io::Result<String> {
        fs::read_to_string(self.path.join(file))
    }

    fn add(&self, child: &Child) -> Step {
        self.write("cgroup.procs", &child.pid.as_raw_nonzero().to_string())
            .doing("move a child into the group")
    }

    fn event(&self, wanted: &str) -> bool {
        until(|| {
            self.read("cgroup.events")
                .is_ok_and(|text| text.lines().any(|line| line == wanted))
        })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A killed member is gone only when the kernel has finished with it.
        until(|| fs::remove_dir(&self.path).is_ok());
    }
}

fn until(mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if done() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Removes groups of probes that no longer live.
fn remove_stale(hierarchy: &Path) {
    for entry in fs::read_dir(hierarchy).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name
            .to_str()
            .and_then(|n| n.strip_prefix(PREFIX))
            .and_then(|n| n.parse::<u32>().ok());
        if owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = fs::write(entry.path().join("cgroup.freeze"), "0");
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// Cleans up after probes that were killed.
pub(crate) fn sweep() {
    for hierarchy in hierarchies() {
        remove_stale(&hierarchy.path);
    }
}

pub(crate) fn hierarchy(work: &Path) -> Outcome {
    all((|| {
        let (path, how) = v2(work)?;
        let group = Group::new(&path)?;
        let child = Child::idle().doing("make a child")?;
        group.add(&child)?;
        let v1 = hierarchies().into_iter().filter(|h| h.v1.is_some()).count();
        let kind = if v1 > 0 {
            format!("beside {v1} v1 hierarchies (hybrid)")
        } else {
            "alone".into()
        };
        Ok(format!("{how}, {kind}; a group was made and entered"))
    })())
}

pub(crate) fn freeze(work: &Path) -> Outcome {
    all((|| {
        let group = Group::new(&v2(work)?.0)?;
        let child = Child::idle().doing("make a child")?;
        group.add(&child)?;
        group.write("cgroup.freeze", "1").doing("freeze")?;
        ensure(group.event("frozen 1"), "the group did not freeze")?;
        group.write("cgroup.freeze", "0").doing("thaw")?;
        ensure(group.event("frozen 0"), "the group did not thaw")?;
        Ok("a group was frozen and thawed".into())
    })())
}

pub(crate) fn kill(work: &Path) -> Outcome {
    all((|| {
        let group = Group::new(&v2(work)?.0)?;
        let child = Child::idle().doing("make a child")?;
        group.add(&child)?;
        group.write("cgroup.kill", "1").doing("kill")?;
        ensure(child.ended(PATIENCE), "the group's member lives")?;
        Ok("a group was killed".into())
    })())
}

/// A group in which `controller` holds: of v2 if it can be enabled there, else of v1.
fn controlled(work: &Path, controller: &str) -> Step<(Group, &'static str)> {
    let (path, _) = v2(work)?;
    let offered = fs::read_to_string(path.join("cgroup.controllers")).unwrap_or_default();
    if offered.split_whitespace().any(|c| c == controller) {
        let enabled = || fs::read_to_string(path.join("cgroup.subtree_control")).unwrap_or_default();
        let was_on = enabled().split_whitespace().any(|c| c == controller);
        // Enabling it for the top's children is what every container engine does, and changes no limit. It is
        // left on: others may have begun to rely on it, and who that is cannot be known.
        if was_on || fs::write(path.join("cgroup.subtree_control"), format!("+{controller}")).is_ok() {
            return Ok((Group::new(&path)?, "v2"));
        }
    }
    let holds = |h: &Hierarchy| h.v1.as_ref().is_some_and(|v1| v1.iter().any(|c| c == controller));
    match hierarchies().into_iter().find(holds) {
        Some(h) => Ok((Group::new(&h.path)?, "v1")),
        None => Err(format!(
            "neither the v2 hierarchy nor a mounted v1 hierarchy has the controller {controller}"
        )),
    }
}

/// Sets a limit and reads it back.
fn limit(group: &Group, files: &[(&str, &str)]) -> Step {
    for (file, text) in files {
        group.write(file, text).doing(&format!("write {file}"))?;
        let back = group.read(file).doing(&format!("read {file}"))?;
        ensure(
            back.trim() == *text,
            &format!("{file} holds {:?} after writing {text:?}", back.trim()),
        )?;
    }
    Ok(())
}

pub(crate) fn memory(work: &Path) -> Outcome {
    all((|| {
        let (group, which) = controlled(work, "memory")?;
        let file = if which == "v2" {
            "memory.max"
        } else {
            "memory.limit_in_bytes"
        };
        limit(&group, &[(file, "33554432")])?;
        Ok(format!("on {which}: a limit was set"))
    })())
}

/// With room for one process, that process cannot fork.
pub(crate) fn pids(work: &Path) -> Outcome {
    all((|| {
        let (group, which) = controlled(work, "pids")?;
        limit(&group, &[("pids.max", "1")])?;
        let (go_r, go_w) = rustix::pipe::pipe().doing("make a pipe")?;
        let child = Child::new(&ForkOptions::default(), || {
            rustix::io::read(&go_r, &mut [0; 1])?;
            match Child::idle() {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(()),
                Err(e) => Err(e),
                Ok(_) => Err(super::failed("the limit did not hold")),
            }
        })
        .doing("make a child")?;
        group.add(&child)?;
        rustix::io::write(&go_w, b"1").doing("start the child")?;
        child.result().doing("see a fork refused")?;
        Ok(format!("on {which}: a fork beyond the limit was refused"))
    })())
}

pub(crate) fn cpu(work: &Path) -> Outcome {
    all((|| {
        let (group, which) = controlled(work, "cpu")?;
        let files: &[(&str, &str)] = match which {
            "v2" => &[("cpu.max", "50000 100000")],
            _ => &[("cpu.cfs_period_us", "100000"), ("cpu.cfs_quota_us", "50000")],
        };
        limit(&group, files)?;
        Ok(format!("on {which}: half a processor was set"))
    })())
}
